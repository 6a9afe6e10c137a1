"""Convolutions that read at places of their own (Dai et al. 2017; modulated: Zhu et al. 2018), of torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

import slim
from tests.channels import laws


class Deformable(nn.Module):
    """16 channels in, 24 out; ``pieces`` of the input's channels have places of their own."""

    def __init__(self, groups: int, pieces: int, modulated: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.offset = nn.Conv2d(16, 2 * 9 * pieces, 3, padding=1)
        self.gate = nn.Conv2d(16, 9 * pieces, 3, padding=1) if modulated else None
        wide = 16 if groups == 16 else 24
        self.conv = DeformConv2d(16, wide, 3, padding=1, groups=groups, bias=modulated)
        self.bn = nn.BatchNorm2d(wide)
        self.head = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = None if self.gate is None else self.gate(x).sigmoid()
        return self.head(torch.relu(self.bn(self.conv(x, self.offset(x), gate))).mean((2, 3)))


@pytest.mark.parametrize("grouped", ["balance", "whole"])
@pytest.mark.parametrize("groups, pieces, modulated", [(1, 1, True), (2, 1, False), (16, 1, True), (2, 4, False)])
def test_channels_go_through_a_deformable_convolution(groups: int, pieces: int, modulated: bool, grouped: str) -> None:
    model = laws.lively(Deformable(groups, pieces, modulated)).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    graph, plan = laws.check_all(model, x, 0.5, seed=3, grouped=grouped)
    conv = slim.rebuild(model, plan).get_submodule("conv")
    assert not graph.unknown and graph.prunable.any()
    assert conv.weight.shape[:2] == (conv.out_channels, conv.in_channels // conv.groups)


def test_the_channels_that_say_where_it_reads_stay() -> None:
    model = Deformable(1, 1, True)
    graph = slim.trace(model, torch.randn(1, 3, 9, 9))
    stay = {space.name for space in graph.spaces if not graph.prunable[space.groups].any()}
    assert {"offset", "gate"} <= stay and not {"stem.0", "conv"} & stay


def test_channels_of_places_of_their_own_stay() -> None:
    graph = slim.trace(Deformable(1, 16, False), torch.randn(1, 3, 9, 9))
    assert any("places of its own" in reason for reason in graph.reasons.values())
