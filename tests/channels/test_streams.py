"""Streams that normalizations read selectively (``residual="select"``): cut again and again, and what of them stays."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slim
from slim.models import densenet
from tests.channels.laws import check_all, close, lively
from tests.channels.strategies import Network


class Growing(nn.Module):
    """Norms and convolutions that each read everything made before, and a view at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, widths = nn.Conv2d(3, 6, 3, padding=1), [6, 10, 14, 18]
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in widths])
        self.convs = nn.ModuleList([nn.Conv2d(width, 4, 3, padding=1) for width in widths[:3]])
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(self.norms[3](x).relu().flatten(2).mean(2))


@pytest.mark.parametrize("residuals", [("select", "select"), ("select", "group"), ("group", "select")])
def test_cuts_of_streams_compose_whatever_each_does_with_them(residuals: tuple[str, str], tmp_path: Path) -> None:
    """Every cut obeys the law, and files load, though a norm read a part of its stream before or after."""
    net, x = lively(Growing()).double().eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for seed in range(6):
        thin = net
        for residual in residuals:
            how = {"criterion": "random", "criterion_options": {"seed": seed}, "ratio": 0.5}
            result = slim.prune(thin, x, residual=residual, **how)
            close(result.model(x), slim.mask(thin, result.plan)(x), "rebuilt")
            close(slim.rebuild(copy.deepcopy(thin), result.plan, in_place=True)(x), result.model(x), "in place")
            thin = result.model
        again = slim.load(slim.save(tmp_path / "thin", thin), net)
        close(again(x), thin(x), "loaded")


def test_a_norm_that_reads_one_channel_of_a_stream_keeps_it() -> None:
    """A layer of one channel has no ids, so the stream's must be held for it."""
    net, x = lively(Growing()).double().eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph = slim.trace(net, x, residual="select")
    removed = np.zeros(len(graph), dtype=bool)
    removed[graph.axes[("norms.0.weight", 0)][1:]] = True
    thin = slim.rebuild(net, graph.plan(removed))
    assert thin.norms[0].select.index.tolist() == [0] and thin.stem.out_channels == 6
    for residual in ("group", "select"):
        again = slim.trace(thin, x, residual=residual)
        stream = again.axes[("stem.weight", 0)]
        assert not again.prunable[stream[0]] and again.prunable[stream[1:]].all()


def test_streams_that_are_read_selectively_pass_the_width_probe() -> None:
    graph = slim.trace(Growing(), torch.zeros(1, 3, 5, 5), residual="select")
    assert "fixes the width" not in graph.report() and graph.prunable.sum() == 6 + 3 * 4 + 6 + 10 + 14 + 18


def test_a_view_of_what_is_selected_of_a_stream_that_stays_is_left_alone() -> None:
    """Whether a shuffle follows its width cannot be tried where the norm before it cannot be wider."""
    branches = (("seq", (("depthwise", 1),)), ("seq", (("batchnorm", True), ("shuffle", 2))))
    net = Network(1, 2, (("act", "gelu"), ("concat", branches)), ("mean", 1, "gelu"), 0).eval()
    graph, _ = check_all(net, net.example(), 0.25, seed=0, residual="select")
    assert "cannot be tried: its stream stays" in graph.report()


@pytest.mark.parametrize("residual", ["group", "select"])
def test_a_shuffle_with_fixed_channels_in_front_of_a_norm_is_tried(residual: str) -> None:
    """Where the channels are widened the groups still fit, but the norm meets others."""
    spec = (("conv", 2, 3, 1, 1, True), ("pad", 2), ("shuffle", 4), ("batchnorm", True), ("conv", 3, 1, 1, 1, True))
    network = Network(3, 2, spec, ("mean", 0, ""), 0)
    _, plan = check_all(network, network.example(), 1.0, seed=0, residual=residual)
    assert plan.widths["body.0"] == (2, 2) and plan.widths["body.4"] == (3, 1)


def test_what_says_where_a_selection_lies_is_no_number_of_the_forward() -> None:
    torch.manual_seed(0)
    net = densenet(depth=10).eval()
    graph = slim.trace(net, torch.zeros(1, 3, 8, 8), residual="select")
    thin = slim.rebuild(net, slim.select(graph, slim.score(graph, criterion="l1"), ratio=0.4))
    again = slim.trace(thin, torch.zeros(1, 3, 8, 8), residual="select")
    assert again.prunable.mean() > 0.95 and "computes with the number" not in again.report()
