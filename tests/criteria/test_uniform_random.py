"""uniform and random: the two controls."""

from __future__ import annotations

import numpy as np
import pytest

import slim
from slim.errors import SlimError
from tests.criteria.networks import residual, space


def test_uniform_takes_the_same_share_of_each_layer():
    _, graph = residual(width=40, inner=20)
    for ratio in (0.25, 0.5, 0.75):
        removed = slim.select_groups(graph, slim.score(graph, "uniform"), ratio=ratio).removed
        for module, width in (("stem", 40), ("first", 20)):
            assert removed[space(graph, module)].sum() == pytest.approx(ratio * width, abs=1)


def test_uniform_orders_a_layer_by_gamma():
    model, graph = residual()
    values = slim.score(graph, "uniform").values[space(graph, "first")]
    assert np.argsort(values).tolist() == model.first_norm.weight.detach().abs().argsort().tolist()


def test_uniform_falls_back_to_filters():
    model, graph = residual(norm=False)
    values = slim.score(graph, "uniform").values[space(graph, "first")]
    order = model.first.weight.detach().abs().sum((1, 2, 3)).argsort()
    assert np.argsort(values).tolist() == order.tolist()


def test_uniform_has_no_data_for_a_criterion_that_needs_some():
    with pytest.raises(SlimError, match="Got by='taylor'"):
        slim.score(residual()[1], "uniform", by="taylor")


def test_random_follows_its_seed():
    _, graph = residual()
    a, b, c = (slim.score(graph, "random", seed=s).values for s in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()
    # The same on every machine: PCG64's stream is fixed by NumPy's policy.
    assert a[0] == 0.6369616873214543
