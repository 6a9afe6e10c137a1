"""Random networks for the laws of surgery: a hypothesis strategy of plans-of-networks and the network built from one.

A network is drawn as plain nested tuples, so that hypothesis can shrink it and a failing one prints as a line that
can be pasted into `Network(...)`. Any tuple is valid: the builder bends a request to the channels it meets (a count of
groups becomes a divisor), instead of the strategy rejecting draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Op = tuple[Any, ...]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    # From here on f(0) != 0: a removed channel is a constant, not nothing.
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardsigmoid": nn.Hardsigmoid,
}


class Branches(nn.Module):
    """Runs one input ``(N, C, H, W)`` through several paths and combines their outputs: ``add``, ``mul`` or ``cat``."""

    def __init__(self, paths: Sequence[nn.Module], combine: str) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        outs = [path(x) for path in self.paths]
        if self.combine == "cat":
            return torch.cat(outs, 1)
        total = outs[0]
        for out in outs[1:]:
            total = total + out if self.combine == "add" else total * out
        return total


class Split(nn.Module):
    """Splits the channels in pieces, runs each through its own path, concatenates in another order."""

    def __init__(self, widths: Sequence[int], paths: Sequence[nn.Module], chunk: bool) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.widths, self.chunk = list(widths), chunk

    def forward(self, x: Tensor) -> Tensor:
        # A chunk says how many, a split says how wide: the thin network must get both right.
        parts = x.chunk(len(self.widths), 1) if self.chunk else x.split(self.widths, 1)
        return torch.cat([path(part) for path, part in zip(self.paths, parts, strict=True)][::-1], 1)


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle, written as models write it: view, transpose, view."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Squeeze(nn.Module):
    """Squeeze-excite: a gate per channel from the channels' means."""

    def __init__(self, channels: int, hidden: int, gate: str) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.gate = ACTIVATIONS[gate]()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class ChannelsLast(nn.Module):
    """Runs a module on ``(N, H, W, C)``, as ConvNeXt does with its LayerNorm and its linear layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Twice(nn.Module):
    """One module, called twice: its outputs are its own inputs' channels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(x)))


class Scaled(nn.Module):
    """Raw parameters used in forward: a scale and a shift per channel, no layer around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Pad(nn.Module):
    """Zero channels after the real ones, as the parameter-free ResNet shortcut has them."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))


def build(op: Op, channels: int) -> tuple[nn.Module, int]:
    """The module that ``op`` asks for on ``channels`` channels, and the channels it returns."""
    kind, *args = op
    if kind == "seq":
        modules = []
        for inner in args[0]:
            module, channels = build(inner, channels)
            modules.append(module)
        return nn.Sequential(*modules), channels
    if kind == "conv":
        width, kernel, stride, groups, bias = args
        groups = math.gcd(groups, channels)
        width = max(1, width // groups) * groups
        return nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=bias), width
    if kind == "depthwise":
        multiple = args[0]
        return nn.Conv2d(channels, channels * multiple, 3, padding=1, groups=channels), channels * multiple
    if kind == "transposed":
        width, groups = args
        groups = math.gcd(groups, channels)
        width = max(1, width // groups) * groups
        return nn.ConvTranspose2d(channels, width, 2, 2, groups=groups), width
    if kind == "batchnorm":
        return nn.BatchNorm2d(channels, affine=args[0]), channels
    if kind == "groupnorm":
        return nn.GroupNorm(math.gcd(args[0], channels), channels), channels
    if kind == "layernorm":
        return ChannelsLast(nn.LayerNorm(channels)), channels
    if kind == "act":
        return ACTIVATIONS[args[0]](), channels
    if kind == "prelu":
        return nn.PReLU(channels), channels
    if kind == "residual":
        inner, combine, project = args
        body, width = build(inner, channels)
        if project or width == channels:
            short = nn.Identity() if width == channels else nn.Conv2d(channels, width, 1)
            return Branches([short, body], combine), width
        return Branches([nn.Identity(), nn.Sequential(body, nn.Conv2d(width, channels, 1))], combine), channels
    if kind == "dense":
        body, width = build(args[0], channels)
        return Branches([nn.Identity(), body], "cat"), channels + width
    if kind == "concat":
        built = [build(inner, channels) for inner in args[0]]
        return Branches([module for module, _ in built], "cat"), sum(width for _, width in built)
    if kind == "split":
        inners, chunk = args
        if channels % len(inners):
            return build(inners[0], channels)
        part = channels // len(inners)
        built = [build(inner, part) for inner in inners]
        return Split([part] * len(inners), [module for module, _ in built], chunk), sum(width for _, width in built)
    if kind == "shuffle":
        return Shuffle(math.gcd(args[0], channels)), channels
    if kind == "squeeze":
        hidden, gate = args
        return Squeeze(channels, hidden, gate), channels
    if kind == "mlp":
        hidden = args[0]
        return ChannelsLast(
            nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        ), channels
    if kind == "twice":
        return Twice(nn.Conv2d(channels, channels, 3, padding=1)), channels
    if kind == "scaled":
        return Scaled(channels), channels
    if kind == "pad":
        return Pad(args[0]), channels + args[0]
    if kind == "pixelshuffle":
        return (nn.PixelShuffle(2), channels // 4) if channels % 4 == 0 else (nn.Identity(), channels)
    if kind == "pool":
        return {"max": nn.MaxPool2d(3, 1, 1), "avg": nn.AvgPool2d(3, 1, 1), "half": nn.AvgPool2d(2, ceil_mode=True)}[
            args[0]
        ], channels
    if kind == "upsample":
        return nn.Upsample(scale_factor=2, mode="nearest"), channels
    raise ValueError(kind)


def head(op: Op, channels: int) -> nn.Module:
    """From ``(N, C, H, W)`` to ``(N, 3)``."""
    kind, hidden, act = op
    if kind == "mean":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    if kind == "flatten":
        wide = [nn.Linear(4 * channels, hidden), nn.BatchNorm1d(hidden), ACTIVATIONS[act](), nn.Linear(hidden, 3)]
        return nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), *wide)
    if kind == "normed":
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(4 * channels), nn.Linear(4 * channels, 3)
        )
    return nn.Sequential(nn.Conv2d(channels, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Network(nn.Module):
    """``(N, inputs, 8, 8)`` to ``(N, 3)``; weights, statistics and gammas drawn from ``seed``, in float64."""

    def __init__(self, inputs: int, stem: int, ops: Sequence[Op], end: Op, seed: int) -> None:
        super().__init__()
        self.spec = (inputs, stem, tuple(ops), end, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(inputs, stem, 3, padding=1)
            self.body, channels = build(("seq", tuple(ops)), stem)
            self.head = head(end, channels)
            self.double()
            for module in self.modules():
                # Nothing stays at 0 or 1, where a mistake would not show.
                for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                    if name == "running_var":
                        tensor.data.uniform_(0.5, 2.0)
                    elif (tensor.is_floating_point() and tensor.dim() <= 1) or isinstance(module, Scaled):
                        tensor.data.uniform_(0.3, 1.0).mul_(torch.sign(torch.randn(tensor.shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))

    def __repr__(self) -> str:
        return "Network" + repr(self.spec)

    def example(self, batch: int = 3) -> Tensor:
        """An input ``(batch, inputs, 8, 8)``, the same for the same seed."""
        generator = torch.Generator().manual_seed(self.spec[-1])
        return torch.randn(batch, self.spec[0], 8, 8, generator=generator, dtype=torch.float64)


WIDTH = st.integers(1, 12)
ACT = st.sampled_from(sorted(ACTIVATIONS))
GATE = st.sampled_from(["sigmoid", "hardsigmoid"])


def _flat() -> st.SearchStrategy[Op]:
    """Operations that keep height and width, so that any of them may stand inside a branch."""
    return st.one_of(
        st.tuples(
            st.just("conv"), WIDTH, st.sampled_from([1, 3]), st.just(1), st.sampled_from([1, 1, 2, 3, 4]), st.booleans()
        ),
        st.tuples(st.just("batchnorm"), st.sampled_from([True, True, True, False])),
        st.tuples(st.just("act"), ACT),
        st.tuples(st.just("depthwise"), st.sampled_from([1, 1, 2])),
        st.tuples(st.just("squeeze"), st.integers(1, 6), GATE),
        st.tuples(st.just("shuffle"), st.sampled_from([2, 3, 4])),
        st.tuples(st.just("groupnorm"), st.sampled_from([1, 2, 4])),
        st.just(("layernorm",)),
        st.just(("prelu",)),
        st.just(("scaled",)),
        st.just(("twice",)),
        st.tuples(st.just("mlp"), WIDTH),
        st.tuples(st.just("pad"), st.integers(1, 3)),
        st.tuples(st.just("pool"), st.sampled_from(["max", "avg"])),
    )


def _nest(inner: st.SearchStrategy[Op]) -> st.SearchStrategy[Op]:
    seq = st.tuples(st.just("seq"), st.lists(inner, min_size=1, max_size=4).map(tuple))
    return st.one_of(
        st.tuples(st.just("residual"), seq, st.just("add"), st.just(True)),
        st.tuples(st.just("residual"), seq, st.sampled_from(["add", "add", "mul"]), st.booleans()),
        st.tuples(st.just("dense"), seq),
        st.tuples(st.just("concat"), st.lists(seq, min_size=2, max_size=3).map(tuple)),
        st.tuples(st.just("split"), st.lists(seq, min_size=2, max_size=3).map(tuple), st.booleans()),
    )


FLAT = _flat()
SHALLOW = _nest(FLAT)
DEEP = _nest(st.one_of(FLAT, SHALLOW))
SPATIAL = st.one_of(
    st.tuples(st.just("conv"), WIDTH, st.just(3), st.just(2), st.sampled_from([1, 1, 2]), st.booleans()),
    st.tuples(st.just("transposed"), WIDTH, st.sampled_from([1, 2])),
    st.tuples(st.just("pool"), st.just("half")),
    st.just(("pixelshuffle",)),
    st.just(("upsample",)),
)
HEAD = st.tuples(st.sampled_from(["mean", "flatten", "normed", "conv"]), WIDTH, ACT)


def networks() -> st.SearchStrategy[Network]:
    """Networks of two to eight operations, branches within branches, on 8x8 images of one to three channels."""
    ops = st.lists(st.one_of(FLAT, FLAT, SHALLOW, DEEP, SPATIAL), min_size=2, max_size=8)
    sizes = st.integers(1, 3), st.integers(1, 12)
    return st.builds(Network, *sizes, ops.filter(_not_too_large), HEAD, st.integers(0, 2**16))


def _not_too_large(ops: Sequence[Op]) -> bool:
    """At most two doublings of the image: what is tested is the channels."""
    return sum(op[0] in ("transposed", "pixelshuffle", "upsample") for op in ops) <= 2
