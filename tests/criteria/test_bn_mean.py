"""bn_mean: what the layer puts out, by running it."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

import slim
from tests.criteria.networks import residual, space
from tests.criteria.test_bn_variance import normal_input


def test_it_is_the_size_of_the_shift():
    model, graph = residual()
    expected = model.first_norm.bias.detach().abs().tolist()
    assert slim.score(graph, "bn_mean").values[space(graph, "first")] == pytest.approx(expected)


def test_rectified_it_is_the_mean_behind_a_relu():
    model, graph = residual()
    norm = model.first_norm.double().eval()
    out = F.relu(norm(normal_input(norm)).detach())
    scores = slim.score(graph, "bn_mean", rectified=True)
    assert scores.values[space(graph, "first")] == pytest.approx(out.mean((0, 2, 3)).tolist(), rel=0.02, abs=1e-3)
