"""thinet: against leaving channels out of the network, one after another, by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slim
from slim.criteria.contributions import contributions
from slim.criteria.thinet import greedy
from tests.criteria.networks import INPUTS, batches, residual, space


def lost(model: nn.Module, layer: nn.Module, channels: list[int], images: Tensor) -> float:
    """Squared change of a layer's outputs without some of its inputs."""

    def without(m: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = args[0].clone()
        x[:, channels] = 0
        return (x,)

    outputs: list[Tensor] = []
    for hook in (None, without):
        handles = [layer.register_forward_hook(lambda m, args, out: outputs.append(out))]
        handles += [layer.register_forward_pre_hook(hook)] if hook else []
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
    return float((outputs[0] - outputs[1]).double().square().sum())


def test_the_order_and_the_errors_are_those_of_brute_force():
    model, graph = residual(inner=6)
    model.eval()
    data = batches(2)
    images = torch.cat([x for x, _ in data])
    mine = space(graph, "first")
    values = slim.score(graph, "thinet", loader=data, positions=64).values[mine]
    whole = lost(model, model.second, list(range(6)), images)
    gone: list[int] = []
    for channel in np.argsort(values):
        errors = {c: lost(model, model.second, [*gone, c], images) / whole for c in range(6) if c not in gone}
        assert channel == min(errors, key=errors.__getitem__)
        gone.append(int(channel))
        assert values[channel] >= errors[channel] * (1 - 1e-4)
    assert values.max() == pytest.approx(1, rel=1e-3) or values.max() > 1


def test_the_overlap_is_that_of_the_parts_of_the_outputs():
    """Behind a flatten a group is several inputs, in a grouped convolution blocks do not meet; a bias is nobody's."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 36, 3),
    )  # fmt: skip
    graph = slim.trace(net, INPUTS)
    data = batches(1)
    found = list(contributions(graph, data, 1, 36, 0, name="test"))
    assert [len(groups) for groups, _ in found] == [4, 6]
    for layer, (_, overlap) in zip((net[2], net[5]), found, strict=True):
        width = 1 if layer is net[2] else 36
        pick = [list(range(i * width, (i + 1) * width)) for i in range(len(overlap))]
        for i, j in itertools.combinations_with_replacement(range(len(overlap)), 2):
            both, first, second = (lost(net, layer, c, data[0][0]) for c in (pick[i] + pick[j], pick[i], pick[j]))
            wanted = first if i == j else (both - first - second) / 2
            total = lost(net, layer, [*itertools.chain(*pick)], data[0][0])
            assert overlap[i, j] == pytest.approx(wanted / total, rel=1e-3, abs=1e-5)


def test_greedy_is_the_best_next_channel():
    x = np.random.default_rng(0).normal(size=(20, 6))
    order, errors = greedy(x.T @ x)
    for step, error in enumerate(errors):
        choices = [np.square(x[:, [*order[:step], c]].sum(1)).sum() for c in range(6) if c not in order[:step]]
        assert error == pytest.approx(min(choices))
