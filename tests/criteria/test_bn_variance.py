"""bn_variance: what the layer puts out, by running it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import slim
from tests.criteria.networks import residual, space


def normal_input(norm, samples=400_000):
    """Gaussian data with the layer's running statistics, (samples, C, 1, 1)."""
    x = torch.randn(samples, norm.num_features, 1, 1, dtype=torch.float64)
    return x * norm.running_var.double().sqrt().view(1, -1, 1, 1) + norm.running_mean.double().view(1, -1, 1, 1)


@pytest.mark.parametrize("rectified", [False, True])
def test_it_is_the_variance_of_the_output(rectified):
    model, graph = residual()
    norm = model.first_norm.double().eval()
    out = norm(normal_input(norm)).detach()
    out = F.relu(out) if rectified else out
    scores = slim.score(graph, "bn_variance", rectified=rectified)
    assert scores.values[space(graph, "first")] == pytest.approx(out.var((0, 2, 3)).tolist(), rel=0.03, abs=1e-4)


def test_a_dead_input_has_no_variance_whatever_gamma_is():
    model, graph = residual()
    model.first_norm.running_var[2] = 0
    model.first_norm.weight.data[2] = 100
    assert slim.score(graph, "bn_variance").values[space(graph, "first")[2]] == 0
