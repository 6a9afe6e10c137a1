"""taylor: against finite differences of a gate that someone wrote into the network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import slim
from slim.errors import SlimError
from tests.criteria.networks import batches, residual, space


def slope(model, change, data, eps=1e-5):
    """d loss / d t of a network whose parameters ``change(t)`` scales, by central differences, per batch (float64)."""
    model = model.double().eval()
    found = []
    for x, y in data:
        losses = []
        for t in (1 + eps, 1 - eps):
            saved = {k: v.clone() for k, v in model.state_dict().items()}
            change(t)
            with torch.no_grad():
                losses.append(float(F.cross_entropy(model(x.double()), y)))
            model.load_state_dict(saved)
        found.append((losses[0] - losses[1]) / (2 * eps))
    return sum(abs(s) for s in found) / len(found)


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("channel", [0, 3])
def test_gamma_form_is_the_slope_of_a_gate(beta, channel):
    model, graph = residual()
    data = batches()
    values = slim.score(graph, "taylor", loader=data, beta=beta).values

    def free(t):
        model.first_norm.weight.data[channel] *= t
        if beta:
            model.first_norm.bias.data[channel] *= t

    def stream(t):
        for norm in (model.stem_norm, model.second_norm):
            norm.weight.data[channel] *= t
            if beta:
                norm.bias.data[channel] *= t

    assert values[space(graph, "first")[channel]] == pytest.approx(slope(model, free, data), rel=1e-3, abs=1e-7)
    assert values[space(graph, "stem")[channel]] == pytest.approx(slope(model, stream, data), rel=1e-3, abs=1e-7)


def test_weight_form_is_the_slope_of_a_filter_and_its_bias():
    model, graph = residual(norm=False)
    data = batches()
    values = slim.score(graph, "taylor", loader=data).values

    def change(t):
        model.first.weight.data[2] *= t
        model.first.bias.data[2] *= t

    assert values[space(graph, "first")[2]] == pytest.approx(slope(model, change, data), rel=1e-3, abs=1e-7)


def test_frozen_parameters_have_gradients_for_us_and_none_are_left():
    model, graph = residual()
    before = slim.score(graph, "taylor", loader=batches()).values
    for p in model.parameters():
        p.requires_grad_(False)
    assert (slim.score(graph, "taylor", loader=batches()).values == before).all()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_targets_are_needed():
    _, graph = residual()
    with pytest.raises(SlimError, match="needs targets"):
        slim.score(graph, "taylor", loader=[x for x, _ in batches()])


def test_a_loss_of_ones_own():
    _, graph = residual()
    values = slim.score(graph, "taylor", loader=batches(), loss=lambda out, y: (out * 0).sum()).values
    assert not values.any()
