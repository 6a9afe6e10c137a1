"""geometric_median: distances to all other filters."""

from __future__ import annotations

import pytest

import slim
from tests.criteria.networks import residual, space


def test_it_sums_the_distances():
    model, graph = residual()
    filters = model.first.weight.detach()
    expected = [sum(float((f - g).norm()) for g in filters) for f in filters]
    assert slim.score(graph, "geometric_median").values[space(graph, "first")] == pytest.approx(expected, rel=1e-5)


def test_a_filter_in_the_middle_goes_before_a_small_one():
    model, graph = residual()
    weight = model.first.weight.data
    weight[4] = 0
    weight[:4] += 1  # four alike, away from zero
    weight[0] = weight[1:4].mean(0)
    values = slim.score(graph, "geometric_median").values[space(graph, "first")]
    assert values.argmin() == 0
    assert values.argmax() == 4
