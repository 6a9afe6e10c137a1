"""l1 and l2: filter norms, for every kind of layer that makes channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import slim
from tests.criteria.networks import INPUTS, residual, space


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_those_of_the_filters(name, power):
    model, graph = residual()
    values = slim.score(graph, name).values

    def norms(layer):
        return [sum(abs(w) ** power for w in f.flatten().tolist()) ** (1 / power) for f in layer.weight.detach()]

    assert values[space(graph, "first")] == pytest.approx(norms(model.first), rel=1e-5)
    stream = [(a + b) / 2 for a, b in zip(norms(model.stem), norms(model.second), strict=True)]
    assert values[space(graph, "stem")] == pytest.approx(stream, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_read_along_their_output_axis(groups):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, groups=groups), nn.Conv2d(6, 2, 1))
    graph = slim.trace(model, INPUTS)
    weight = model[1].weight.detach()  # (in, out / groups, 3, 3)
    if groups == 1:
        expected = weight.abs().sum((0, 2, 3))
    else:
        expected = torch.cat([weight[:2].abs().sum((0, 2, 3)), weight[2:].abs().sum((0, 2, 3))])
    groups_of = graph.axes[("1.bias", 0)]
    assert slim.score(graph, "l1").values[groups_of] == pytest.approx(expected.tolist(), rel=1e-5)


def test_linear_layers_make_channels_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 2))
    graph = slim.trace(model, INPUTS)
    values = slim.score(graph, "l2").values
    assert values[space(graph, "1")] == pytest.approx(model[1].weight.detach().norm(dim=1).tolist(), rel=1e-5)


def test_readers_of_a_stream_without_filters_of_their_own_have_the_stream_s_score():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), Preactivated(6), Preactivated(6), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    graph = slim.trace(model, INPUTS, residual="select")
    assert len(graph.implied)
    scores = slim.score(graph, "l1")
    for stream, reader in graph.implied:
        assert scores.covered[reader]
        assert scores.values[reader] == scores.values[stream]
    assert slim.select_groups(graph, scores, macs=0.5).removed[graph.implied[:, 1]].any()


class Preactivated(nn.Module):
    """BatchNorm, ReLU, convolution, shortcut."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(self.norm(x).relu())


def test_a_layer_that_has_no_score_is_told_of():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
    )
    nn.utils.prune.random_unstructured(model[0], "weight", amount=0.5)  # its weight is a product now, no parameter
    (note,) = slim.prune(model, INPUTS, ratio=0.25, criterion="l1").report.notes
    assert note.startswith("8 channel groups have no score by l1 and stay, the first in 0.")
    nn.utils.prune.remove(model[0], "weight")
    assert not slim.prune(model, INPUTS, ratio=0.25, criterion="l1").report.notes
