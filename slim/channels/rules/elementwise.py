"""Elementwise operations: what meets belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from slim.channels.ids import FIXED, IntArray, Shadow, alive, along, axis_layer, merge, pad_rank, varying
from slim.channels.rules.registry import argument, positive_dim, rule
from slim.channels.silence import is_silent
from slim.channels.tracer import Tracer


@rule(
    "alias",
    "detach",
    "clone",
    "contiguous",
    "_to_copy",
    "lift_fresh",
    "lift_fresh_copy",
    "_conj",
    "_neg_view",
    "native_dropout",
    "dropout",
    "bernoulli",
    "zero",
    "fill",
    "uniform",
    "random",
    "exponential",
    "geometric",
    "cauchy",
    "log_normal",
    "poisson",
    "resolve_conj",
    "resolve_neg",
    "_fused_dropout",
)
def same_shape(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """The result has its first operand's shape and channels."""
    for result in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(result, torch.Tensor) and result.shape == args[0].shape:
            tr.set_shadow(result, tr.shadow_of(args[0]))


@rule(
    "_prelu_kernel",
    "prelu",
    "copy",
    "lerp",
    "where",
    "normal",
    "hardswish",
    "hardshrink",
    "softshrink",
    "log_sigmoid_forward",
    "rrelu_with_noise",
    "rsub",
    "floor_divide",
    "complex",
    "polar",
    "binomial",
)
# Without the tag in torch 2.6.
@rule("leaky_relu", "elu", "celu", "selu", "hardtanh", "hardsigmoid")
def pointwise(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Elements that meet belong together (residual sums, gates, scales)."""
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.ndim]
    for a in args:
        if isinstance(a, (list, tuple)):
            operands += [t for t in a if isinstance(t, torch.Tensor) and t.ndim]
    results = out if isinstance(out, (tuple, list)) else (out,)
    shape = results[0].shape
    if func.overloadpacket.__name__ == "prelu" and operands[1].ndim == 1 and operands[1].numel() > 1:
        shadow = join_operands(tr, [operands[0]], shape)
        own = tr.axis_ids(operands[1], 0)
        weight = (axis_layer(own, 1, len(shape)),) if own is not None else ()
        size = (1, shape[1], *(1 for _ in shape[2:]))
        tr.set_shadow(results[0], combine(tr, [(shadow, shape), (weight, size)], shape))
        return
    for divisor in _divisors(func.overloadpacket.__name__.rstrip("_"), args):
        for layer in tr.shadow_of(divisor) if is_silent(divisor) else ():
            tr.inexact(layer, "is divided by what a mask makes zero")
    shadow = join_operands(tr, operands, shape)
    for result in results:
        if isinstance(result, torch.Tensor) and result.shape == shape:
            tr.set_shadow(result, shadow)


def _divisors(name: str, args: Sequence[Any]) -> list[torch.Tensor]:
    """The operands that must not be zero."""
    place = {"reciprocal": 0, "rsqrt": 0, "log": 0, "log2": 0, "log10": 0, "addcdiv": 2}.get(name)
    if name in ("div", "true_divide", "floor_divide", "fmod", "remainder"):
        place = 1
    elif name == "pow" and isinstance(args[1], (int, float)) and args[1] < 0:
        place = 0
    return [args[place]] if place is not None and isinstance(args[place], torch.Tensor) else []


def join_operands(tr: Tracer, operands: Sequence[torch.Tensor], shape: Sequence[int]) -> Shadow:
    """Join what meets when ``operands`` are broadcast to ``shape``."""
    shadows = [tr.shadow_of(t) for t in operands]
    if any(shadows) and any(own_sizes(t) != tuple(t.shape) for t in operands):
        for layer in (layer for shadow in shadows for layer in shadow):
            tr.assume_ids(layer)  # somebody said how far data are expanded
    return combine(tr, [(shadow, own_sizes(t)) for shadow, t in zip(shadows, operands, strict=True)], shape)


def own_sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape, but 1 along every axis over which the same data are expanded."""
    if tensor.layout is not torch.strided:
        return tuple(tensor.shape)
    return tuple(1 if step == 0 else n for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def combine(tr: Tracer, operands: Sequence[tuple[Shadow, Sequence[int]]], shape: Sequence[int]) -> Shadow:
    """Join the layers of several operands that vary along a common axis; pin ids that meet channel-less data."""
    rank = len(shape)
    if len(operands) == 1:
        return pad_rank(operands[0][0], rank)
    if not any(shadow for shadow, _ in operands):
        return ()
    shadows = [pad_rank(s, rank) for s, _ in operands]
    sizes = [(1,) * (rank - len(z)) + tuple(z) for _, z in operands]
    for d in range(rank):
        if shape[d] <= 1:
            continue
        have = any(along(s, d) for s in shadows)
        if have and any(z[d] > 1 and not along(s, d) for s, z in zip(shadows, sizes, strict=True)):
            reason = "meets data that is not the network's own channels"
            shadows = [tuple(tr.keep_whole(x, (d,), reason) for x in s) for s in shadows]
    layers = [layer for s in shadows for layer in s]
    for i, left in enumerate(layers):
        for right in layers[i + 1 :]:
            if left is not right and set(varying(left)) & set(varying(right)):
                tr.join(left, right)
    widest = merge(layers)
    # Where an id met fixed data, the id is what a consumer must see, so that it is pinned too.
    return tuple(_prefer_ids(w, layers) for w in widest)


def _prefer_ids(wide: IntArray, layers: Sequence[IntArray]) -> IntArray:
    if wide.all():
        return wide
    for other in layers:
        if set(varying(other)) <= set(varying(wide)):
            wide = np.where(wide == FIXED, other, wide)
    return wide


@rule("glu")
def glu(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """The two halves of the axis gate each other."""
    x = args[0]
    d = positive_dim(argument(args, kwargs, 1, "dim", -1), x.ndim)
    layers = []
    for layer in tr.shadow_of(x):
        if layer.shape[d] > 1:
            left, right = np.split(layer, 2, axis=d)
            tr.join(left, right)
            tr.assume(along((layer,), d)[0], d, [layer.shape[d] // 2], "glu")
            layers.append(left)
        else:
            layers.append(layer)
    tr.set_shadow(out, alive(layers))
