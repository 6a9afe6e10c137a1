"""Exact zeros go as far as structure and limits let them, from any precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slim
from slim.errors import SlimError
from slim.selection import exact_zeros

X = torch.zeros(1, 3, 4, 4)


def half_dead(dtype: torch.dtype = torch.float32) -> slim.ChannelGraph:
    """Two layers of eight channels; in each the first six are at zero."""
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
    net = nn.Sequential(*layers, nn.Conv2d(8, 2, 1)).to(dtype)
    for norm in (net[1], net[4]):
        nn.init.zeros_(norm.weight[:6].detach())
    return slim.trace(net, X.to(dtype))


@pytest.mark.parametrize(
    ("rules", "widths"),
    [
        ({}, (2, 2)),
        ({"min_channels": 3}, (3, 3)),
        ({"max_layer_ratio": 0.5}, (4, 4)),
        ({"round_to": 3}, (3, 3)),
        ({"ignore": ["0"]}, (8, 2)),
        ({"overrides": {"3": {"min_channels": 5}}}, (2, 5)),
    ],
)
def test_limits_hold(rules: dict, widths: tuple[int, int]) -> None:
    graph = half_dead()
    thin = slim.rebuild(graph.model, graph.plan(exact_zeros(graph, **rules)))
    assert (thin[0].out_channels, thin[3].out_channels) == widths


def test_shares_are_of_the_dense_network() -> None:
    dense = half_dead()
    thin = slim.rebuild(dense.model, dense.plan(exact_zeros(dense, max_layer_ratio=0.5)))
    graph = slim.trace(thin, X)
    assert not exact_zeros(graph, dense, max_layer_ratio=0.5).any()
    assert exact_zeros(graph, dense, max_layer_ratio=0.75).sum() == 4


def test_a_layer_that_is_dead_keeps_a_channel() -> None:
    graph = half_dead()
    nn.init.zeros_(graph.model[1].weight.detach())
    assert slim.rebuild(graph.model, graph.plan(exact_zeros(graph)))[0].out_channels == 1


def test_any_precision() -> None:
    assert exact_zeros(half_dead(torch.bfloat16)).sum() == 12


def test_a_pattern_must_match() -> None:
    with pytest.raises(SlimError, match="matches none"):
        exact_zeros(half_dead(), ignore=["nothing"])
