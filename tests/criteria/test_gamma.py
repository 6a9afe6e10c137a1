"""gamma: |scale|, reduced over the layers of a stream."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slim
from slim.errors import SlimError
from tests.criteria.networks import INPUTS, residual, space


@pytest.mark.parametrize(
    ("reduce", "formula"),
    [
        ("mean", lambda a, b: (a + b) / 2),
        ("max", torch.maximum),
        ("sum", lambda a, b: a + b),
        ("l2", lambda a, b: (a * a + b * b).sqrt()),
    ],
)
def test_a_stream_reduces_its_scales(reduce, formula):
    model, graph = residual()
    scores = slim.score(graph, "gamma", reduce=reduce)
    a, b = model.stem_norm.weight.detach().abs().double(), model.second_norm.weight.detach().abs().double()
    assert torch.equal(torch.tensor(scores.values[space(graph, "stem")]), formula(a, b))
    free = model.first_norm.weight.detach().abs().double()
    assert torch.equal(torch.tensor(scores.values[space(graph, "first")]), free)


def test_counts_are_scales_and_the_head_is_not_covered():
    _, graph = residual()
    scores = slim.score(graph)
    assert scores.counts[space(graph, "stem")].tolist() == [2] * 6
    assert scores.counts[space(graph, "first")].tolist() == [1] * 5
    assert scores.covered.sum() == 11
    assert len(graph) == 3 + 11 + 3, "inputs and outputs are groups too"


def test_without_scales_the_error_says_what_to_do():
    graph = slim.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), INPUTS)
    with pytest.raises(SlimError, match=r"without any\. Set criterion=l1"):
        slim.score(graph, "gamma")


def test_affine_false_has_no_scales():
    graph = slim.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 3)), INPUTS)
    with pytest.raises(SlimError, match="without any"):
        slim.score(graph, "gamma")


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.GroupNorm(4, 4)])
def test_scales_of_other_normalizations_rank_channels_too(norm):
    nn.init.uniform_(norm.weight)
    graph = slim.trace(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 3)), INPUTS)
    scores = slim.score(graph, "gamma")
    assert scores.values[space(graph, "0")].tolist() == norm.weight.double().tolist()
