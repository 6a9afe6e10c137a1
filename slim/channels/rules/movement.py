"""Operations that only move data: the operation, done to the ids, is the index arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from slim.channels.ids import FIXED, IntArray, Shadow, alive, along, axis_layer, pad_rank, varying, view
from slim.channels.rules.elementwise import combine, join_operands
from slim.channels.rules.registry import argument, positive_dim, rule
from slim.channels.tracer import Tracer


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "view_copy", "unflatten")
def reshape(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A view is its own index arithmetic. A split axis keeps its meaning only when whole columns of it go."""
    if args[0].dtype != out.dtype:
        return tr.unknown(func, args, kwargs)
    shadow, splits = view(tr.shadow_of(args[0]), args[0].shape, out.shape)
    name = func.overloadpacket.__name__
    if "squeeze" not in name and list(out.shape).count(1) > list(args[0].shape).count(1):
        for layer in tr.shadow_of(args[0]):  # (N, C) -> (N, C, 1, 1), or C channels as C groups of one
            tr.assume_ids(layer)
    for table in splits:
        tr.split_view(table)
    for layer in shadow:
        if [n for n in out.shape if n > 1] != [n for n in args[0].shape if n > 1] and layer.size > 1:
            tr.assume_ids(layer)  # axes became others: a size may be a number of the author's
    tr.note_sizes(shadow)
    tr.set_shadow(out, shadow)


@rule("as_strided")
def as_strided(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Only the identity is understood."""
    if args[0].shape == out.shape:
        tr.set_shadow(out, tr.shadow_of(args[0]))
    else:
        tr.unknown(func, args, kwargs)


@rule("expand", "broadcast_to", "expand_copy")
def expand(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """New or stretched axes carry no ids."""
    tr.set_shadow(out, pad_rank(tr.shadow_of(args[0]), out.ndim))


@rule("permute", "transpose", "t", "permute_copy", "swapaxes", "movedim", "numpy_T", "adjoint", "mT", "mH")
def permute(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Axes move, ids move with them."""
    rank = args[0].ndim
    name = func.overloadpacket.__name__.rstrip("_")
    if name.startswith("permute"):
        order = [positive_dim(d, rank) for d in argument(args, kwargs, 1, "dims", ())]
    else:
        order = list(range(rank))
        if rank > 1:
            a, b = (0, 1) if name == "t" else (positive_dim(args[1], rank), positive_dim(args[2], rank))
            order[a], order[b] = order[b], order[a]
    tr.set_shadow(out, tuple(layer.transpose(order) for layer in tr.shadow_of(args[0])))


@rule("cat", "concat", "_cat")
def cat(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Ids stand one after another along the axis, and meet along the others."""
    pieces = [t for t in args[0] if not (t.ndim == 1 and t.numel() == 0)]
    d = positive_dim(argument(args, kwargs, 1, "dim", 0), out.ndim)
    for t in pieces:
        if any(len(varying(layer)) > 1 for layer in along(tr.shadow_of(t), d)):
            reason = "is concatenated with other channels along part of a split"
            kept = [tr.keep_whole(x, (d,), reason) if len(varying(x)) > 1 else x for x in tr.shadow_of(t)]
            tr.set_shadow(t, tuple(kept))
    layers: list[IntArray] = []
    rest: list[tuple[Shadow, Sequence[int]]] = []
    if any(along(tr.shadow_of(t), d) for t in pieces):
        parts = []
        for t in pieces:
            mine = along(tr.shadow_of(t), d)
            if len(mine) > 1 or (mine and varying(mine[0]) != (d,)):
                return tr.unknown(func, args, kwargs)
            shape = [1] * out.ndim
            shape[d] = t.shape[d]
            parts.append(mine[0] if mine else np.full(shape, FIXED, dtype=np.int64))
        layers.append(np.concatenate(parts, axis=d))
    flat = list(out.shape)
    flat[d] = 1
    for t in pieces:
        others = tuple(layer for layer in tr.shadow_of(t) if layer.shape[d] == 1)
        size = list(t.shape)
        size[d] = 1
        rest.append((others, size))
    layers += combine(tr, rest, flat)
    tr.set_shadow(out, alive(layers))


@rule("stack")
def stack(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A new axis without ids; the others meet."""
    d = positive_dim(argument(args, kwargs, 1, "dim", 0), out.ndim)
    shape = list(out.shape)
    del shape[d]
    shadow = join_operands(tr, args[0], shape)
    tr.set_shadow(out, tuple(np.expand_dims(layer, d) for layer in shadow))


@rule(
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "chunk",
    "unsafe_chunk",
    "tensor_split",
    "split_copy",
)
def split(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Pieces keep their ids; along an axis of channels every piece must keep its share of the width."""
    d = positive_dim(argument(args, kwargs, 2, "dim", 0), args[0].ndim)
    shadow = tr.shadow_of(args[0])
    stops = list(np.cumsum([piece.shape[d] for piece in out]))
    shadow = tuple(_cut(tr, layer, d, stops[:-1], func.overloadpacket.__name__) for layer in shadow)
    for layer in along(shadow, d):
        tr.note_pieces(np.split(layer, stops[:-1], axis=d), d)
    start = 0
    for piece, stop in zip(out, stops, strict=True):
        mine = tuple(np.take(x, np.arange(start, stop), axis=d) if x.shape[d] > 1 else x for x in shadow)
        tr.note_sizes(tuple(along(mine, d)))
        tr.set_shadow(piece, mine)
        start = stop


def _cut(tr: Tracer, layer: IntArray, d: int, stops: Sequence[int], what: str) -> IntArray:
    """An axis is cut at ``stops``: one of channels keeps its shares, one that is part of a wider split stays whole."""
    layer = tr.tight(layer)
    if layer.shape[d] > 1 and len(varying(layer)) > 1:
        return tr.keep_whole(layer, (d,), f"{what} takes channels by their position")
    if layer.shape[d] > 1:
        tr.note_sizes((layer,))
        tr.assume(layer, d, stops, what)
    return layer


@rule("slice", "narrow", "slice_copy")
def slice_(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A range of channels: its bounds must be shares of the width."""
    x = args[0]
    d = positive_dim(argument(args, kwargs, 1, "dim", 0), x.ndim)
    n = x.shape[d]
    start = argument(args, kwargs, 2, "start", 0) or 0
    step = argument(args, kwargs, 4, "step", 1)
    start = min(max(positive_dim(start, n), 0), n)
    layers = []
    for layer in tr.shadow_of(x):
        if layer.shape[d] > 1:
            stop = start + out.shape[d]
            if step != 1:
                layer = tr.keep_whole(layer, (d,), "a strided slice picks channels by their position")
            elif (start, stop) != (0, n):
                layer = _cut(tr, layer, d, [b for b in (start, stop) if 0 < b < n], "slice")
            if layer.shape[d] > 1:
                layer = np.take(layer, np.arange(start, start + out.shape[d] * step, step), axis=d)
                tr.note_pieces([layer], d)
                tr.note_sizes((layer,))
        layers.append(layer)
    tr.set_shadow(out, alive(layers))


@rule("select", "unbind", "select_copy", "unbind_copy")
def select(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """One position of an axis; an axis that the plan may thin cannot be indexed by position."""
    x = args[0]
    d = positive_dim(argument(args, kwargs, 1, "dim", 0), x.ndim)
    many = isinstance(out, (tuple, list))
    index = 0 if many else positive_dim(argument(args, kwargs, 2, "index", 0), x.shape[d])
    reason = f"{func.overloadpacket.__name__} takes channels by their position"
    shadow = [tr.keep_whole(layer, (d,), reason) for layer in tr.shadow_of(x)]
    for i, result in enumerate(out if many else (out,)):
        tr.set_shadow(result, alive(np.take(x_, index + i if x_.shape[d] > 1 else 0, axis=d) for x_ in shadow))


@rule("diagonal")
def diagonal(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """The diagonal of two axes becomes an axis behind the others."""
    x = args[0]
    axes = [positive_dim(argument(args, kwargs, 2 + i, f"dim{1 + i}", i), x.ndim) for i in (0, 1)]
    shadow = tr.outside(tr.shadow_of(x), axes, "diagonal takes channels by their position")
    rest = [d for d in range(x.ndim) if d not in axes]
    tr.set_shadow(out, tuple(layer.transpose(*rest, *axes)[..., 0] for layer in shadow))


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def fresh(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Made from nothing but a dtype and a device: no channels."""


@rule("roll", "flip", "rot90")
def roll(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Rotating or flipping positions passes axes without ids, and pins the others."""
    name = func.overloadpacket.__name__
    dims = argument(args, kwargs, 1 if name == "flip" else 2, "dims", (0, 1) if name == "rot90" else ())
    dims = [dims] if isinstance(dims, int) else list(dims)
    moved = [positive_dim(d, args[0].ndim) for d in dims] or range(args[0].ndim)
    tr.set_shadow(out, tr.outside(tr.shadow_of(args[0]), moved, f"{name} moves channels by position"))


@rule("repeat", "tile")
def repeat(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Copies carry the ids of what they copy."""
    counts = [out.shape[d] for d in range(out.ndim)]
    layers = []
    for layer in pad_rank(tr.shadow_of(args[0]), out.ndim):
        reps = [counts[d] // n if n > 1 else 1 for d, n in enumerate(layer.shape)]
        if any(r > 1 for r in reps):
            tr.assume_ids(layer)
        layers.append(np.tile(layer, reps))
    if tr.is_parameter(args[0]):
        out._slim_repeated = args[0]
    tr.set_shadow(out, tuple(layers))


def of_channels(
    tr: Tracer, x: torch.Tensor, axis: int, rank: int, what: str, carry: Callable[[IntArray], IntArray]
) -> Shadow:
    """What ``carry`` makes of the channels (n,) along ``axis``, in a result of that rank; other layers are pinned."""
    layers = []
    for layer in tr.shadow_of(x):
        if varying(layer) == (axis,):
            layers.append(axis_layer(carry(layer.ravel()), axis, rank))
        else:
            tr.pin(layer, f"{what} over an axis that is not the channels'")
    return alive(layers)


def as_one(tr: Tracer, count: int, ids: IntArray) -> IntArray:
    """Every ``count`` consecutive ids go together, and become one."""
    blocks = ids.reshape(-1, count)
    tr.join(blocks, blocks[:, :1])
    return blocks[:, 0]


@rule("pixel_shuffle")
def pixel_shuffle(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """r x r consecutive channels become one: they go together."""
    carry = partial(as_one, tr, args[1] ** 2)
    tr.set_shadow(out, of_channels(tr, args[0], args[0].ndim - 3, out.ndim, "pixel_shuffle", carry))


@rule("pixel_unshuffle")
def pixel_unshuffle(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """One channel becomes r x r."""
    carry = partial(np.repeat, repeats=args[1] ** 2)
    tr.set_shadow(out, of_channels(tr, args[0], args[0].ndim - 3, out.ndim, "pixel_unshuffle", carry))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Interleaves ``groups`` runs of channels: what ends up side by side goes together."""
    layers = []
    for layer in tr.shadow_of(args[0]):
        if varying(layer) == (1,):
            table = layer.reshape(args[1], -1)
            tr.assume_columns(table, "channel_shuffle")
            layers.append(axis_layer(table.T.ravel(), 1, layer.ndim))
        else:
            tr.pin(layer, "channel_shuffle over an axis that is not the channels'")
    tr.set_shadow(out, alive(layers))


@rule("constant_pad_nd", "pad")
def constant_pad(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Padded positions of a channel axis are fixed data."""
    x, pads = args[0], list(args[1])
    layers = []
    for layer in tr.shadow_of(x):
        for k in range(len(pads) // 2):
            d = x.ndim - 1 - k
            low, high = pads[2 * k], pads[2 * k + 1]
            if layer.shape[d] > 1 and (low or high):
                if low < 0 or high < 0:
                    tr.pin(layer, "a negative padding cuts channels by their position")
                    layer = np.take(layer, np.arange(max(0, -low), x.shape[d] - max(0, -high)), axis=d)
                width = [(0, 0)] * layer.ndim
                width[d] = (max(low, 0), max(high, 0))
                layer = np.pad(layer, width, constant_values=FIXED)
        layers.append(layer)
    tr.set_shadow(out, alive(layers))
