"""One small network per structure the trace must understand; each obeys every law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
from slim.channels import Plan
from slim.errors import SlimError
from tests.channels.laws import check_all, close
from tests.channels.pieces import Heads


class Shuffled(nn.Module):
    """Grouped convolution, channel shuffle, depthwise, grouped convolution."""

    def __init__(self, inner: int | None = None, literal: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 1)
        self.literal = literal
        self.first = nn.Conv2d(8, 32, 1, groups=4)
        self.norm = nn.BatchNorm2d(32)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.second = nn.Conv2d(32, 32, 1, groups=4)
        self.head = nn.Conv2d(32, 3, 1)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(self.stem(x)))
        n, c, h, w = x.shape
        x = x.view(n, 4, 8 if self.literal else self.inner or c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.second(self.depth(x)))


class Cut(nn.Module):
    """Pieces of a channel axis: as shares of its width, or as fixed numbers."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 16, 3), nn.Conv2d(4, 16, 3), nn.Conv2d(8, 5, 1)
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.a(x).split(8, 1) if self.fixed else self.a(x).chunk(2, 1)
        y = self.b(x)
        half = 8 if self.fixed else y.shape[1] // 2
        return self.c(p * torch.sigmoid(q) + y[:, :half])


class Halves(nn.Module):
    """Two halves that different layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(4, 16, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return self.a(left) - self.b(right).tanh()


class Spatial(nn.Module):
    """An attention map from the mean and the maximum over channels (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.map, self.head = nn.Conv2d(4, 8, 3), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(x * torch.sigmoid(self.map(pooled)))


class Attention(nn.Module):
    """Single-head attention by hand (its scale follows the width or not) and an MLP."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.embed, self.scaled = nn.Conv2d(4, 16, 1), scaled
        self.q, self.k, self.v, self.o = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(16, 24), nn.Linear(24, 16)
        self.up, self.down, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x).flatten(2).transpose(1, 2)
        q, k = self.q(t), self.k(t)
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if self.scaled else 0.3)
        t = t + self.o(torch.softmax(scores, -1) @ self.v(t))
        return self.head((t + self.down(F.gelu(self.up(t)))).mean(1))


class Shared(nn.Module):
    """A block used twice, a raw scale, a transposed convolution, PReLU and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.up, self.act = nn.ConvTranspose2d(8, 12, 2, 2), nn.PReLU(12)
        self.wide, self.head = nn.Conv2d(12, 16, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + F.silu(self.norm(self.conv(x))) * self.scale
        return self.head(F.pixel_shuffle(self.wide(self.act(self.up(x))), 2))


class Einsum(nn.Module):
    """A raw weight used in einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 12, 1), nn.Conv2d(7, 2, 1)
        self.weight = nn.Parameter(torch.randn(12, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("nchw,cd->ndhw", self.stem(x), self.weight))


def _norm1d() -> nn.Module:
    tail = (nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.ELU(), *tail)


def _conv3d() -> nn.Module:
    tail = (nn.MaxPool3d(2), nn.Flatten(1), nn.Linear(16 * 3 * 3, 6))
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv3d(1, 16, 3), nn.BatchNorm3d(16), nn.Softplus(), *tail)


def _instance() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 4, 1))


def _per_channel_group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 12, 1), nn.GroupNorm(12, 12), nn.ReLU(), nn.Conv2d(12, 3, 1))


def _grouped_transpose() -> nn.Module:
    stem, up = nn.Conv2d(4, 12, 1), nn.ConvTranspose2d(12, 24, 3, 2, groups=3)
    return nn.Sequential(stem, up, nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 2, 1))


def _multiplier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 18, 3, groups=6), nn.ReLU(), nn.Conv2d(18, 4, 1))


def _unfold() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 1), nn.Unfold(2), nn.Conv1d(24, 4, 1))


PRUNABLE = {
    "channel shuffle": (Shuffled, True),
    "chunk and slice": (lambda: Cut(fixed=False), True),
    "split by fixed numbers": (lambda: Cut(fixed=True), False),
    "halves": (Halves, True),
    "mean over channels": (Spatial, False),
    "attention": (lambda: Attention(scaled=False), True),
    "attention scaled by its width": (lambda: Attention(scaled=True), True),
    "shared block": (Shared, True),
    "einsum": (Einsum, True),
    "1d": (_norm1d, True),
    "3d": (_conv3d, True),
    "instance norm": (_instance, True),
    "group norm per channel": (_per_channel_group_norm, True),
    "grouped transpose": (_grouped_transpose, True),
    "depthwise multiplier": (_multiplier, True),
    "unfold": (_unfold, True),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 1)), False),
    "lstm": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 16), Last(nn.LSTM(16, 8, batch_first=True))), False),
}


class Last(nn.Module):
    """The first output of a module that has several."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[0]
        return out


@pytest.mark.parametrize("grouped", ["balance", "whole"])
@pytest.mark.parametrize("name", PRUNABLE)
def test_obeys_every_law(name: str, grouped: str) -> None:
    build, prunable = PRUNABLE[name]
    net = build().double()
    graph, _ = check_all(net, torch.randn(3, 4, 8, 8, dtype=torch.float64), 0.5, 0, grouped=grouped)
    if grouped == "balance":
        assert graph.prunable.any() == prunable


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_instance_norms_have_scales(axes: int, statistics: bool, training: bool, batch: int) -> None:
    """PyTorch runs them as batch norms whose parameters it repeats for every sample."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1]
    norm = kind(8, affine=True, track_running_stats=statistics)
    nn.init.uniform_(norm.weight)
    net = nn.Sequential(conv(4, 8, 3), norm, nn.ReLU(), conv(8, 4, 1)).double().train(training)
    x = torch.randn(batch, 4, *[5] * axes, dtype=torch.float64)
    (scale,) = slim.trace(net, x).scales
    assert (scale.weight, scale.bias, scale.kind) == ("1.weight", "1.bias", "instance")
    assert (scale.mean, scale.var) == (("1.running_mean", "1.running_var") if statistics else (None, None))
    plan = slim.prune(net, x, ratio=0.5).plan
    assert plan.axes["1.weight", 0].kept.tolist() == norm.weight.argsort()[4:].sort().values.tolist()
    check_all(net, x, 0.5, 0)


class Functional(nn.Module):
    """A normalization as a function, its parameters under names of their own."""

    def __init__(self, norm: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.norm = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1), norm
        self.gamma, self.beta = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x), self.gamma, self.beta)))


NORMS = {
    "instance": lambda x, gamma, beta: F.instance_norm(x, weight=gamma, bias=beta),
    "group": lambda x, gamma, beta: F.group_norm(x, 4, gamma, beta),
    "layer": lambda x, gamma, beta: F.layer_norm(x.movedim(1, -1), (8,), gamma, beta).movedim(-1, 1),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_scale_knows_its_shift_by_any_name(kind: str) -> None:
    x = torch.randn(2, 4, 8, 8)
    (scale,) = slim.trace(Functional(NORMS[kind]), x).scales
    assert (scale.weight, scale.bias, scale.kind) == ("gamma", "beta", kind)
    (scale,) = slim.trace(Functional(lambda x, gamma, beta: NORMS[kind](x, gamma, None)), x).scales
    assert (scale.weight, scale.bias) == ("gamma", None)


def test_scale_by_the_width_keeps_the_width() -> None:
    x = torch.randn(1, 4, 6, 6)
    free, tied = slim.trace(Attention(scaled=False), x), slim.trace(Attention(scaled=True), x)
    assert free.prunable.sum() - tied.prunable.sum() == 12  # the rows of q and k, coupled


def test_multi_head_attention_keeps_its_heads_and_width() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Flatten(2), nn.Linear(64, 16), layer, nn.Linear(16, 3)).double().eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    graph = slim.trace(net, x)
    assert graph.prunable.sum() == 32  # the MLP's hidden channels
    removed = graph.prunable.copy()
    removed[np.flatnonzero(removed)[:10]] = False
    plan = graph.plan(removed)
    with torch.no_grad():
        close(slim.rebuild(net, plan)(x), slim.mask(net, plan)(x), "attention")


def test_halves_lose_equally_many() -> None:
    graph = slim.trace(Halves(), torch.randn(1, 4, 8, 8))
    assert [len(block) for balance in graph.balance for block in balance.blocks] == [8, 8]


def test_a_split_by_fixed_numbers_says_so() -> None:
    graph = slim.trace(Cut(fixed=True), torch.randn(1, 4, 8, 8))
    assert "fixes the width" in graph.reason(int(graph.spaces[0].groups[-1])) or "fixes the width" in graph.report()


def test_a_shuffle_by_fixed_numbers_is_pinned() -> None:
    free = slim.trace(Shuffled(), torch.randn(1, 4, 8, 8))
    hard = slim.trace(Shuffled(literal=True), torch.randn(1, 4, 8, 8))
    assert hard.prunable.sum() < free.prunable.sum() + 32  # the shuffled channels stay
    assert "fixes the width" in hard.report()


def test_a_shuffle_by_an_attribute_has_the_attribute_set() -> None:
    net, x = Shuffled(inner=8).double().eval(), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    graph, _ = check_all(net, x, 0.5, 0)
    assert graph.prunable.sum() == slim.trace(Shuffled(), torch.randn(1, 4, 8, 8)).prunable.sum()
    plan = slim.select(graph, slim.score(graph, "l1"), ratio=0.5)
    thin = slim.rebuild(net, plan)
    inner = plan.attributes[""]["inner"]
    assert thin.inner == inner < 8 and net.inner == 8
    assert Plan.from_json(plan.to_json()) == plan
    close(thin(x), slim.mask(net, plan)(x), "shuffle")


class FixedFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 16, 3), nn.Linear(16 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).view(-1, 16 * 36))


class FreeFlatten(FixedFlatten):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def test_a_hard_coded_width_is_refused_and_the_model_left_alone() -> None:
    net, free = FixedFlatten(), FreeFlatten()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert "fixes the width" in slim.trace(net, torch.randn(2, 4, 8, 8)).report()
    graph = slim.trace(free, torch.randn(2, 4, 8, 8))
    removed = graph.prunable.copy()
    removed[np.flatnonzero(removed)[5:]] = False
    with pytest.raises(SlimError, match=r"module forward\).*fix a width"):
        slim.rebuild(net, graph.plan(removed))  # of a network of the same shapes
    inner = slim.trace(nn.Sequential(free), torch.randn(2, 4, 8, 8))
    with pytest.raises(SlimError, match=r"module 0\).*fix a width"):
        slim.rebuild(nn.Sequential(net), inner.plan(removed))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_an_unknown_operation_pins_and_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.renorm(self.a(x), 2, 0, 1.0))

    graph = slim.trace(Odd(), torch.randn(1, 4, 4, 4))
    assert not graph.prunable.any()
    assert "renorm" in graph.unknown and "renorm" in graph.report()


def test_an_unknown_product_is_not_called_a_computed_weight() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Bilinear(8, 8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(self.b(x, x))

    report = slim.trace(Pairs(), torch.zeros(2, 3)).report()
    assert "no rule for _trilinear (b)" in report and "slim.fold" not in report


def test_a_depthwise_weight_of_two_layers_thins_both() -> None:
    """And whatever shares a weight says its width: a head that is tied to an embedding."""
    first, second = (nn.Conv2d(8, 8, 3, padding=d, dilation=d, groups=8) for d in (1, 2))
    second.weight = first.weight
    net = nn.Sequential(nn.Conv2d(3, 8, 1), first, nn.ReLU(), second, nn.Conv2d(8, 2, 1)).double()
    graph, plan = check_all(net, torch.randn(2, 3, 6, 6, dtype=torch.float64), 0.5, 0)
    thin = slim.rebuild(net, plan)
    assert graph.prunable.sum() == 8 and thin[1].groups == thin[3].groups == thin[3].in_channels == 4

    words = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False))
    words[2].weight = words[0].weight
    graph = slim.trace(words, torch.zeros(2, 3, dtype=torch.long))
    thin = slim.rebuild(words, slim.select(graph, slim.score(graph, criterion="l1"), ratio=0.5))
    assert thin[2].weight is thin[0].weight and thin[2].in_features == thin[0].embedding_dim == 4


class Experts(nn.Module):
    """Several small networks side by side in one einsum, whose product has experts and channels along one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 5)), nn.Parameter(torch.randn(4, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ebh,eoh->ebo", torch.einsum("bi,ehi->ebh", x, self.up).relu(), self.down)


def test_work_of_an_axis_that_is_two_merged() -> None:
    graph, _ = check_all(Experts().double(), torch.randn(6, 5, dtype=torch.float64), 0.5, 0)
    assert graph.prunable.sum() == 8


def test_work_of_heads_that_are_as_many_as_the_samples() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Heads(6, 3, "attribute"), nn.Conv2d(6, 2, 1)).double()
    graph, _ = check_all(net, torch.randn(3, 3, 4, 4, dtype=torch.float64), 0.5, 0)
    assert graph.prunable[graph.axes[("1.qkv.weight", 0)]].all()
