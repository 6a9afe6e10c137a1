"""Computed weights folded into plain ones: the same function, and then channels can go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import slim
from tests.channels.laws import assert_unchanged, check_all, close, snapshot
from tests.channels.pieces import Same, Standardized

KINDS = {
    "weight norm": lambda: (parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), nn.Conv2d(8, 8, 3)),
    "spectral norm": lambda: (parametrizations.spectral_norm(nn.Conv2d(4, 8, 3)), nn.Conv2d(8, 8, 3)),
    "standardized": lambda: (Standardized(4, 8, 3), Standardized(8, 8, 3)),
    "standardized, padded": lambda: (Standardized(4, 8, 3), Same(8, 8, 3, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_folding_keeps_the_function_and_frees_the_channels(kind: str) -> None:
    first, second = KINDS[kind]()
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 2, 1)).double().eval()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    wanted, before = net(x), snapshot(net)
    folded = slim.fold(net, x)
    assert_unchanged(net, before)
    close(folded(x), wanted, "folded", 1e-7)
    assert set(map(type, folded.modules())) & {Standardized, Same} == set()
    free = slim.trace(folded, x)
    assert free.prunable.sum() == 16 > slim.trace(net, x).prunable.sum()
    check_all(folded, x, 0.5, 0)


class Standardized1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Standardized3d(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("kind", [Standardized1d, Standardized3d])
def test_convolutions_of_other_ranks_fold_too(kind: Any) -> None:
    dims = 1 if kind is Standardized1d else 3
    plain = kind.__base__
    net = nn.Sequential(plain(4, 8, 3), nn.ReLU(), kind(8, 8, 3, padding=1, groups=2), nn.ReLU(), plain(8, 2, 1))
    net, x = net.double().eval(), torch.randn(2, 4, *[5] * dims, dtype=torch.float64)
    folded = slim.fold(net, x)
    close(folded(x), net(x), "folded", 1e-7)
    assert type(folded[2]) is plain and slim.trace(folded, x).prunable.sum() == 16
    check_all(folded, x, 0.5, 0)


OLDER = {"weight norm": nn.utils.weight_norm, "spectral norm": nn.utils.spectral_norm}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", OLDER)
def test_the_older_hooks_fold_after_a_step_of_training(kind: str) -> None:
    """Their weight is then a result of the forward, which autograd holds."""
    norm = OLDER[kind]
    net = nn.Sequential(norm(nn.Conv2d(4, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    net, x = net.double(), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    net(x).square().mean().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    before = snapshot(net)
    slim.rebuild(net, (graph := slim.trace(net, x)).plan(np.zeros(len(graph), bool)))
    assert_unchanged(net, before)
    folded = slim.fold(net)
    assert_unchanged(net, before)
    close(folded.eval()(x), net.eval()(x), "folded", 1e-7)
    check_all(folded, x, 0.5, 0)
    # Files without metadata, such as safetensors, load into it.
    folded.load_state_dict(dict(folded.state_dict()))


def test_reasons_name_the_way_out() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), nn.Conv2d(8, 2, 1))
    assert "slim.fold" in slim.trace(net, torch.randn(2, 4, 8, 8)).report()


def test_a_weight_that_the_input_mixes_is_not_said_to_fold() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)
            self.weights = nn.Parameter(torch.randn(2, 6, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            mixed = torch.einsum("nk,koihw->noihw", self.gate(x.mean((2, 3))).softmax(1), self.weights)
            return F.conv2d(x.flatten(0, 1)[None], mixed.flatten(0, 1), groups=len(x))[0]

    report = slim.trace(Mixing(), torch.randn(2, 3, 6, 6)).report()
    assert "computed from more than parameters" in report and "slim.fold" not in report


def test_rows_of_a_standardized_weight_go_exactly_and_its_columns_when_asked() -> None:
    net = nn.Sequential(Standardized(4, 8, 3), nn.ReLU(), Standardized(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    graph, _ = check_all(net, x, 0.5, 0)
    rows, columns = graph.axes[("2.weight", 0)], graph.axes[("2.weight", 1)]
    assert graph.prunable[rows].all() and not graph.prunable[columns].any() and graph.inexact[columns].all()
    assert "slim.fold" in graph.reason(columns[0]) and len(graph) == 4 + 8 + 8 + 2 and graph.depth() == 3
    plan = slim.select(graph, slim.score(graph, criterion="l1"), ratio=0.5, inexact=True)
    thin = slim.rebuild(net, plan)
    assert thin(x).shape == net(x).shape and plan.widths["0"][1] < 8
