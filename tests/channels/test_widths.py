"""Widths that a forward takes from attributes of its module, and tensors that it keeps for its next call."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import slim
from slim.channels.constraints import pin_fixed_axes, pinned_ids
from slim.channels.dispatch import record_trace
from slim.channels.width_probe import _multiplicities
from tests.channels.laws import check_all, close
from tests.channels.pieces import Gated, Viewed

X = torch.randn(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _net(piece: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), piece, nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1)).double()


def test_all_sizes_of_one_split_are_set_together() -> None:
    net = _net(Gated(6, 9)).eval()
    graph, _ = check_all(net, X, 0.5, 0)
    assert graph.prunable[graph.axes[("1.down.weight", 1)]].all()
    plan = slim.select(graph, slim.score(graph, criterion="l1"), ratio=0.5)
    close(slim.rebuild(net, plan)(X), slim.mask(net, plan)(X), "gated")
    assert {f"sizes[{i}]" for i in range(3)} == set(plan.attributes["1"])


def test_a_view_of_literal_width_is_followed() -> None:
    graph, plan = check_all(_net(Viewed(6, 10)), X, 0.5, 0)
    assert graph.prunable[graph.axes[("1.conv.weight", 0)]].all() and set(plan.attributes["1"]) == {"width"}


class Cached(nn.Module):
    """Computes a table from a parameter once, and keeps it per device, as timm's attention biases are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.cache = nn.Conv2d(6, 6, 1), nn.Parameter(torch.ones(6)), dict[str, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if self.training or str(x.device) not in self.cache:
            self.cache[str(x.device)] = self.scale[:, None, None] * 2
        return self.conv(x) * self.cache[str(x.device)]


def test_what_a_forward_keeps_does_not_outlive_its_width() -> None:
    net = _net(Cached()).eval()
    with torch.no_grad():
        net(X)
        plan = slim.select(graph := slim.trace(net, X), slim.score(graph, criterion="l1"), ratio=0.5)
        assert set(net[1].cache) == {"cpu"}, "the trace leaves nothing behind"
        wanted = slim.mask(net, plan)
        wanted[1].cache = {}
        close(slim.rebuild(net, plan)(X), wanted(X), "kept from the dense network")


class Wrapped(nn.Module):
    """A linear layer two of PyTorch's containers below the module that views its input."""

    def __init__(self, inner: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Tokens(nn.Module):
    """``reshape(B, -1, width)``: a wrong width goes on into the tokens, and stops the forward only where it is read."""

    def __init__(self, inner: int, *, kept: bool) -> None:
        super().__init__()
        self.up = nn.Linear(6, inner)
        self.down = nn.Sequential(nn.Identity(), nn.Sequential(Wrapped(inner, 6)))
        if kept:
            self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.up(x.flatten(2).transpose(1, 2))
        tokens = self.down(tokens.reshape(len(x), -1, getattr(self, "inner", 9)))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Perceptron(nn.Module):
    """Of the channels at every place, as in ConvNeXt: PyTorch views a permuted input by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)


def test_an_attribute_is_found_beyond_containers() -> None:
    graph, plan = check_all(_net(Tokens(9, kept=True)), X, 0.5, 0)
    assert graph.prunable[graph.axes[("1.up.weight", 0)]].all() and set(plan.attributes["1"]) == {"inner"}


def test_a_literal_width_pins_its_own_place_in_the_code_alone() -> None:
    net = _net(nn.Sequential(Perceptron(), Tokens(9, kept=False), Perceptron()))
    graph, _ = check_all(net, X, 0.5, 0)
    assert not graph.prunable[graph.axes[("1.1.up.weight", 0)]].any()
    for place in ("1.0", "1.2"):
        assert graph.prunable[graph.axes[(f"{place}.up.weight", 0)]].all(), "a linear layer of another class's"


class Borrowed(nn.Module):
    """Takes the width of its first layer for a cut through, or a view of, what its last layer makes."""

    def __init__(self, between: int, cut: bool) -> None:
        super().__init__()
        self.first, self.last, self.cut = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 16 if cut else 8, 1), cut
        self.between = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(between))
        self.out = nn.Conv2d(1 if cut else 8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.first(x)
        for layer in self.between:
            y = layer(y)
        y = self.last(y)
        return self.out(y[:, : x.shape[1]].sum(1, keepdim=True) if self.cut else y.flatten(2).view(x.shape))


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("between", [0, 1, 2, 3])
def test_a_number_that_is_the_width_of_another_layer_is_found(between: int, cut: bool) -> None:
    graph, _ = check_all(_net(Borrowed(between, cut)), X, 0.5, 0)
    assert not graph.prunable[graph.axes[("1.first.weight", 0)]].any()
    assert cut or all(graph.prunable[graph.axes[(f"1.between.{i}.weight", 0)]].all() for i in range(between))


class Counted(nn.Module):
    """Divides what its last layer makes by the width of one of many equally wide layers before it."""

    def __init__(self, layers: int, counted: int) -> None:
        super().__init__()
        widths = [6, *[8] * layers, 6]
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairwise(widths))
        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        width = 1
        for i, layer in enumerate(self.layers):
            x = layer(x)
            width = x.shape[1] if i == self.counted else width
        return x / width


@pytest.mark.parametrize("counted", [0, 9, 20])
def test_a_number_pins_no_layer_that_is_as_wide_by_chance(counted: int) -> None:
    graph, _ = check_all(_net(Counted(21, counted)), X, 0.5, 0)
    kept = [i for i in range(21) if not graph.prunable[graph.axes[(f"1.layers.{i}.weight", 0)]].any()]
    assert kept == [counted]


@pytest.mark.parametrize("width", [7, 8])
def test_layers_that_follow_each_other_are_repeated_unequally_often(width: int) -> None:
    widths = [6, *[width] * 5, 6]
    net = _net(nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o)) for i, o in pairwise(widths))))
    record = record_trace(net, X, residual="group", grouped="balance")
    pin_fixed_axes(record, net)
    times = _multiplicities(record, ~pinned_ids(record), turn=0)
    made = [int(times[record.ids.find(ids)][0]) for name, ids in record.producers if name.startswith("1.")]
    assert len(set(made)) == len(made) == 6
