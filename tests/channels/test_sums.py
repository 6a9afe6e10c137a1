"""Sums over channels: what a mask makes zero may go; where it leaves something, or the width is counted, not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
from tests.channels.laws import check_all

WIDTH = 8


class Summed(nn.Module):
    """A map of the channels' sum (N, 1, H, W) beside a layer that reads them one by one."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], norm: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH, affine=norm)
        self.one, self.each, self.reduce = nn.Conv2d(1, 4, 1), nn.Conv2d(WIDTH, 4, 1), reduce

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return (self.one(self.reduce(x)) + self.each(x)).mean((2, 3))


def _in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, : y.shape[1] // 2].add_(1)
    return y.sum(1, keepdim=True)


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.relu().sum(1, keepdim=True),
    "squares": lambda x: (x * x).sum(1, keepdim=True).sqrt(),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "what is a number": lambda x: x.nansum(1, keepdim=True) + x.relu().count_nonzero(1)[:, None],
    "cosine": lambda x: F.cosine_similarity(x, x.tanh(), dim=1)[:, None],
    "of a view": lambda x: x.flatten(2).sum(1).view(x.shape[0], 1, *x.shape[2:]),
    "of a product": lambda x: (x.sigmoid() * x).sum(1, keepdim=True),
    "of the largest": lambda x: x.relu().max(3, keepdim=True).values.sum(1, keepdim=True),
    "of everything": lambda x: (x.relu().sum() * 1e-3).expand(x.shape[0], 1, 1, 1),
    "of both": lambda x: torch.cat([x, x.tanh()], 1).sum(1, keepdim=True),
}
INEXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1, keepdim=True),
    "of positions": lambda x: F.max_pool2d(x, 4, return_indices=True)[1].to(x.dtype).sum(1, True),
    "of positions in rows": lambda x: x.max(3, keepdim=True).indices.to(x.dtype).sum(1, keepdim=True),
    "largest": lambda x: x.max(1, keepdim=True).values,
    "largest of everything": lambda x: x.min().expand(x.shape[0], 1, 1, 1),
    "mean of everything": lambda x: x.mean().expand(x.shape[0], 1, 1, 1),
    "of a sigmoid": lambda x: x.sigmoid().sum(1, keepdim=True),
    "of a shift": lambda x: (x + 1).sum(1, keepdim=True),
    "after a clamp": lambda x: x.clamp(0.1, 1).sum(1, keepdim=True),
    "of a power": lambda x: (x.abs() + 1).pow(-1).sum(1, keepdim=True),
    "quotient": lambda x: (x / (x.abs() + 1)).sum(1, keepdim=True) + (1 / (x.square() + 1)).sum(1, keepdim=True),
    "changed in place": _in_place,
}
COUNTED: dict[str, Callable[[Tensor], Tensor]] = {
    "divided": lambda x: x.sum(1, keepdim=True) / x.shape[1],
    "divided by all": lambda x: (x.sum() / x.numel()).expand(x.shape[0], 1, 1, 1),
    "divided by a tensor": lambda x: x.sum(1, keepdim=True) / torch.sqrt(torch.tensor(x.shape[1])),
    "divided by a tensor there": lambda x: x.sum(1, keepdim=True) * (1 / torch.tensor(x.shape[1], device=x.device)),
    "divided by a filled tensor": lambda x: x.sum(1, keepdim=True) / x.new_full((), x.shape[1]).sqrt(),
    "divided by a count there": lambda x: x.sum(1, keepdim=True) / torch.ones(x.shape[1], device=x.device).sum(),
    "divided by a shape there": lambda x: x.sum(1, keepdim=True) / torch.tensor(x.shape, device=x.device)[1],
    "divided in rows": lambda x: x.sum(1, keepdim=True) * torch.tensor([1 / x.shape[1]] * x.shape[3]),
    "scaled in rows there": lambda x: x.sum(1, keepdim=True) * torch.linspace(1, x.shape[1], 4, device=x.device),
    "rows written in place": lambda x: x.sum(1, keepdim=True) / _row(x),
    "beside it": lambda x: torch.cat([x.sum(1, True)[..., :3], torch.full((3, 1, 4, 1), 1 / x.shape[1])], 3),
    "a copy of it": lambda x: x.sum(1, True) * torch.empty_like(x.sum(1, True)).copy_(torch.tensor(1 / x.shape[1])),
    "divided later": lambda x: x.sum(1, keepdim=True).tanh() / x.shape[1],
    "of a literal view": lambda x: x.reshape(x.shape[0], WIDTH, -1).sum(1).view(x.shape[0], 1, *x.shape[2:]),
}


def _row(x: Tensor) -> Tensor:
    row = x.new_zeros(x.shape[3])
    row[1:] += 1
    row[0] = x.shape[1]
    return row


def _law(net: nn.Module) -> tuple[slim.ChannelGraph, list[int]]:
    graph, _ = check_all(net.double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    return graph, graph.axes[("each.weight", 1)].tolist()


@pytest.mark.parametrize("form", EXACT)
def test_what_adds_nothing_may_go(form: str) -> None:
    graph, groups = _law(Summed(EXACT[form]))
    assert graph.prunable[groups].all()


@pytest.mark.parametrize("form", INEXACT)
def test_what_leaves_something_goes_only_when_asked(form: str) -> None:
    graph, groups = _law(Summed(INEXACT[form]))
    assert not graph.prunable[groups].any() and graph.inexact[groups].all()
    assert "reduces over channels" in graph.reason(groups[0])
    plan = slim.select(graph, slim.score(graph, criterion="l1"), ratio=0.5, inexact=True)
    assert slim.rebuild(graph.model, plan)(torch.randn(2, 3, 6, 6, dtype=torch.float64)).shape == (2, 4)


@pytest.mark.parametrize("form", COUNTED)
def test_a_width_that_is_counted_stays(form: str) -> None:
    graph, groups = _law(Summed(COUNTED[form]))
    assert not graph.prunable[groups].any() and not graph.inexact[groups].any()
    assert "literal" in form or "computes with the number" in graph.reason(groups[0])


class Correlation(nn.Module):
    """Products of pixels, scaled by a tensor made from the width, as optical flow correlates features."""

    def __init__(self, device: bool) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(3, WIDTH, 1), nn.Linear(36, 4)
        self.device = device

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).flatten(2), self.second(x).flatten(2)
        width = torch.tensor(a.shape[1], device=x.device if self.device else None)
        return self.read(a.transpose(1, 2) @ b / torch.sqrt(width)).mean(1)


@pytest.mark.parametrize("device", [False, True])
def test_products_that_are_scaled_by_a_tensor_keep_their_width(device: bool) -> None:
    graph, _ = check_all(Correlation(device).double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    groups = graph.axes[("first.weight", 0)].tolist()
    assert not graph.prunable[groups].any() and "computes with the number" in graph.reason(groups[0])


class Product(nn.Module):
    """Pixels' products over the channels of two activations."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(3, WIDTH, 1), nn.Linear(36, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.activation(layer(x)).flatten(2) for layer in (self.first, self.second))
        return self.read(a.transpose(1, 2) @ b).mean(1)


class Computed(nn.Module):
    """A weight that is computed from two parameters, on activations that are never zero."""

    def __init__(self, weight: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, WIDTH, 3), weight
        self.left, self.right = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.conv(x).sigmoid().mean((2, 3)), self.weight(self.left, self.right))


@pytest.mark.parametrize(
    ("activation", "exact"), [(torch.relu, True), (torch.sigmoid, False), (lambda y: nn.functional.elu(y) + 1, False)]
)
def test_a_product_over_channels_loses_them_where_a_factor_is_zero(
    activation: Callable[[Tensor], Tensor], exact: bool
) -> None:
    """Not in attention without a softmax, whose features are positive (elu + 1): each channel adds products."""
    graph, _ = check_all(Product(activation).double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    groups = graph.axes[("first.weight", 0)]
    assert graph.prunable[groups].all() == exact and graph.inexact[groups].all() != exact


@pytest.mark.parametrize(
    ("weight", "exact"),
    [(lambda a, b: (a @ b).tanh(), True), (lambda a, b: (a @ b).exp(), False), (lambda a, b: a @ (b + 1), False)],
)
def test_a_computed_weight_loses_columns_that_a_mask_makes_zero(
    weight: Callable[[Tensor, Tensor], Tensor], exact: bool
) -> None:
    graph, _ = check_all(Computed(weight).double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    groups = graph.axes[("conv.weight", 0)]
    assert graph.prunable[groups].all() == exact and graph.inexact[groups].all() != exact


def test_a_normalization_without_a_scale_silences_nothing() -> None:
    graph, groups = _law(Summed(EXACT["sum"], norm=False))
    assert not graph.prunable[groups].any()


class ScaledElsewhere(nn.Module):
    """What one layer makes is scaled by a number that comes from the width of another."""

    def __init__(self, scaled: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.read(self.scaled(self.second(x), x.shape[1])).mean((2, 3))


@pytest.mark.parametrize(
    "scaled",
    [
        lambda y, n: y / n,
        lambda y, n: y * torch.full((y.shape[0], 1, 1, 1), n**-0.5, dtype=y.dtype),
        lambda y, n: torch.add(y, y.tanh(), alpha=1 / n),
    ],
)
def test_a_number_from_the_width_of_another_layer_keeps_that_layer(scaled: Callable[[Tensor, int], Tensor]) -> None:
    graph, _ = check_all(ScaledElsewhere(scaled).double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    assert not graph.prunable[graph.axes[("first.weight", 0)]].any()
    assert graph.prunable[graph.axes[("second.weight", 0)]].all()


class Fused(Product):
    """Attention with one head, whose product is scaled as it is made."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = (layer(x).flatten(2) for layer in (self.first, self.second))
        scores = x.new_zeros(x.shape[0], 36, 36)
        return self.read(torch.baddbmm(scores, a.transpose(1, 2), b, alpha=a.shape[1] ** -0.5)).mean(1)


def test_a_product_that_is_scaled_as_it_is_made_keeps_its_width() -> None:
    graph, _ = check_all(Fused(torch.relu).double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    assert not graph.prunable[graph.axes[("first.weight", 0)]].any()
