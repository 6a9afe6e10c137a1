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
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.channels.pieces import (
    ACTIVATIONS,
    FUNCTIONS,
    Attention,
    Branches,
    ChannelsLast,
    Einsum,
    Function,
    Gated,
    GroupedQueries,
    Heads,
    Pad,
    Scaled,
    Shuffle,
    Split,
    Squeeze,
    Tied,
    Twice,
    Viewed,
    computed,
)

Op = tuple[Any, ...]


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
    if kind == "block":
        hidden, norm, act = args
        after = nn.BatchNorm2d(channels) if norm else nn.Identity()
        body = [nn.Conv2d(channels, hidden, 3, padding=1), nn.BatchNorm2d(hidden), ACTIVATIONS[act]()]
        return Branches([nn.Identity(), nn.Sequential(*body, nn.Conv2d(hidden, channels, 1), after)], "add"), channels
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
    if kind == "heads":
        return Heads(channels, args[0], args[1]), channels
    if kind == "queries":
        return GroupedQueries(channels, *args), channels
    if kind == "attention":
        return Attention(channels, math.gcd(args[0], channels), args[1]), channels
    if kind == "gated":
        return Gated(channels, args[0] + 1), channels
    if kind == "viewed":
        return Viewed(channels, args[0]), channels
    if kind == "computed":
        return computed(args[0], channels, args[1]), args[1]
    if kind == "einsum":
        return Einsum(channels, args[0]), args[0]
    if kind == "tied":
        return Tied(channels), channels
    if kind == "function" and args[0] in ("glu", "gate") and channels % 2:
        return nn.Identity(), channels
    if kind == "function":
        return Function(args[0]), FUNCTIONS[args[0]][1](channels)
    if kind == "instancenorm":
        return nn.InstanceNorm2d(channels, affine=True), channels
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
COMPUTED = ["weight_norm", "spectral_norm", "standardized"]
GATE = st.sampled_from(["sigmoid", "hardsigmoid"])


def _flat() -> st.SearchStrategy[Op]:
    """Operations that keep height and width, so that any of them may stand inside a branch."""
    groups = st.sampled_from([1, 1, 2, 3, 4])
    conv = st.tuples(st.just("conv"), WIDTH, st.sampled_from([1, 3]), st.just(1), groups, st.booleans())
    batchnorm = st.tuples(st.just("batchnorm"), st.sampled_from([True, True, True, False]))
    act = st.tuples(st.just("act"), ACT)
    common = st.one_of(
        st.tuples(st.just("depthwise"), st.sampled_from([1, 1, 2])),
        st.tuples(st.just("squeeze"), st.integers(1, 6), GATE),
        st.tuples(st.just("shuffle"), st.sampled_from([2, 3, 4])),
        st.tuples(st.just("groupnorm"), st.sampled_from([1, 2, 4])),
        st.just(("layernorm",)),
        st.just(("prelu",)),
        st.tuples(st.just("pool"), st.sampled_from(["max", "avg"])),
    )
    rare = st.one_of(
        st.just(("scaled",)),
        st.just(("twice",)),
        st.just(("tied",)),
        st.just(("instancenorm",)),
        st.tuples(st.just("mlp"), WIDTH),
        st.tuples(st.just("einsum"), WIDTH),
        st.tuples(st.just("gated"), WIDTH),
        st.tuples(st.just("viewed"), WIDTH),
        st.tuples(st.just("computed"), st.sampled_from(COMPUTED), WIDTH),
        st.tuples(st.just("pad"), st.integers(1, 3)),
        st.tuples(st.just("attention"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("heads"), st.integers(2, 4), st.sampled_from(["fused", "attribute", "literal", "width"])),
        st.tuples(
            st.just("queries"),
            st.integers(1, 3),
            st.integers(2, 3),
            st.sampled_from(["kernel", "repeat", "expand", "attribute"]),
        ),
        st.tuples(st.just("function"), st.sampled_from(sorted(FUNCTIONS))),
    )
    block = st.tuples(st.just("block"), WIDTH, st.booleans(), ACT)
    # Indirection keeps the weights: one_of would flatten what it is given directly.
    return st.sampled_from([conv, conv, batchnorm, act, common, common, block, rare]).flatmap(lambda kind: kind)


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
    return st.builds(Network, *sizes, ops.filter(_not_too_large), HEAD, st.integers(0, 2**16)).filter(_runs)


def _not_too_large(ops: Sequence[Op]) -> bool:
    """At most two doublings of the image: what is tested is the channels."""
    return sum(op[0] in ("transposed", "pixelshuffle", "upsample") for op in ops) <= 2


def _runs(network: Network) -> bool:
    """Whether PyTorch takes it: an instance normalization needs more than one position."""
    if "instancenorm" in repr(network):
        try:
            network.eval()(network.example())
        except ValueError:
            return False
    return True
