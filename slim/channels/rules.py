"""What each kind of operation does to channel ids. One function per kind; nothing here names an architecture.

A rule receives the :class:`~slim.channels.trace.Tracer`, the operation, its arguments (tensors carry their shadow), and
its result, and gives the result its shadow. Rules talk to the tracer with few verbs: ``join`` (these ids go together),
``pin`` (these ids cannot go), ``assume`` (true unless the network hard-codes a width: settled by the widening probe),
``convolve`` and ``multiply`` (contractions). An operation without a rule pins what it touches and is reported by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slim.channels.ids import FIXED, IntArray, Shadow, alive, along, axis_layer, merge, pad_rank, varying, view

if TYPE_CHECKING:
    from slim.channels.trace import Tracer

Rule = Callable[["Tracer", Any, Sequence[Any], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten operations by name (without overload)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def find_rule(func: Any) -> Rule | None:
    """The rule of an operation: by name, by PyTorch's pointwise tag, or by the shape of its signature."""
    name: str = func.overloadpacket.__name__
    found = RULES.get(name)
    if found is not None:
        return found
    if name.endswith("_") and name[:-1] in RULES:
        return RULES[name[:-1]]
    if torch.Tag.pointwise in func.tags:
        return pointwise
    if "batch_norm" in name and "backward" not in name:
        return batch_norm
    if "scaled_dot_product" in name:
        return attention
    if name.endswith("_like"):
        return same
    if "pool" in name or "upsample" in name or name.startswith(("reflection_pad", "replication_pad", "_upsample")):
        return spatial
    arguments = {a.name for a in func._schema.arguments}
    if "dim" in arguments and "keepdim" in arguments:
        return reduction
    return None


def _normal(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _bound(args: Sequence[Any], kwargs: dict[str, Any], position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


# --- elementwise -------------------------------------------------------------------------------------------------


@rule(
    "alias",
    "detach",
    "clone",
    "contiguous",
    "_to_copy",
    "lift_fresh",
    "lift_fresh_copy",
    "_conj",
    "native_dropout",
    "dropout",
    "bernoulli",
    "zero",
    "fill",
    "normal",
    "uniform",
    "random",
    "resolve_conj",
    "resolve_neg",
    "_fused_dropout",
)
def same(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """The result has its first operand's shape and channels."""
    for result in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(result, torch.Tensor) and result.shape == args[0].shape:
            tr.set(result, tr.get(args[0]))


@rule("_prelu_kernel", "prelu", "copy", "lerp", "where", "hardswish", "hardshrink", "softshrink", "rrelu_with_noise")
def pointwise(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Elements that meet belong together (residual sums, gates, scales)."""
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.ndim]
    for a in args:
        if isinstance(a, (list, tuple)):
            operands += [t for t in a if isinstance(t, torch.Tensor) and t.ndim]
    results = out if isinstance(out, (tuple, list)) else (out,)
    shape = results[0].shape
    if func.overloadpacket.__name__ == "prelu" and operands[1].ndim == 1 and operands[1].numel() > 1:
        shadow = meet(tr, [operands[0]], shape)
        own = tr.axis_ids(operands[1], 0)
        weight = (axis_layer(own, 1, len(shape)),) if own is not None else ()
        size = (1, shape[1], *(1 for _ in shape[2:]))
        tr.set(results[0], combine(tr, [(shadow, shape), (weight, size)], shape))
        return
    shadow = meet(tr, operands, shape)
    for result in results:
        if isinstance(result, torch.Tensor) and result.shape == shape:
            tr.set(result, shadow)


def meet(tr: Tracer, operands: Sequence[torch.Tensor], shape: Sequence[int]) -> Shadow:
    """Join what meets when ``operands`` are broadcast to ``shape``."""
    return combine(tr, [(tr.get(t), tuple(t.shape)) for t in operands], shape)


def combine(tr: Tracer, operands: Sequence[tuple[Shadow, Sequence[int]]], shape: Sequence[int]) -> Shadow:
    """Join the layers of several operands that vary along a common axis; pin ids that meet channel-less data."""
    rank = len(shape)
    if len(operands) == 1:
        return pad_rank(operands[0][0], rank)
    if not any(shadow for shadow, _ in operands):
        return ()
    padded = [(pad_rank(s, rank), (1,) * (rank - len(z)) + tuple(z)) for s, z in operands]
    for d in range(rank):
        if shape[d] <= 1:
            continue
        have = [layer for s, _ in padded for layer in along(s, d)]
        if have and any(z[d] > 1 and not along(s, d) for s, z in padded):
            for layer in have:
                tr.pin(layer, "meets data that is not the network's own channels")
    layers = [layer for s, _ in padded for layer in s]
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
    d = _normal(_bound(args, kwargs, 1, "dim", -1), x.ndim)
    layers = []
    for layer in tr.get(x):
        if layer.shape[d] > 1:
            left, right = np.split(layer, 2, axis=d)
            tr.join(left, right)
            tr.assume(along((layer,), d)[0], d, [layer.shape[d] // 2], "glu")
            layers.append(left)
        else:
            layers.append(layer)
    tr.set(out, alive(layers))


# --- data movement -----------------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "view_copy", "unflatten")
def reshape(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A view is its own index arithmetic. A split axis keeps its meaning only when whole columns of it go."""
    if args[0].dtype != out.dtype:
        return tr.unknown(func, args, kwargs)
    shadow, splits = view(tr.get(args[0]), args[0].shape, out.shape)
    for table in splits:
        tr.assume_columns(table, func.overloadpacket.__name__)
    tr.set(out, shadow)


@rule("as_strided")
def as_strided(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Only the identity is understood."""
    if args[0].shape == out.shape:
        tr.set(out, tr.get(args[0]))
    else:
        tr.unknown(func, args, kwargs)


@rule("expand", "broadcast_to", "expand_copy")
def expand(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """New or stretched axes carry no ids."""
    tr.set(out, pad_rank(tr.get(args[0]), out.ndim))


@rule("permute", "transpose", "t", "permute_copy", "swapaxes", "movedim", "numpy_T", "adjoint", "mT", "mH")
def permute(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Axes move, ids move with them."""
    rank = args[0].ndim
    name = func.overloadpacket.__name__.rstrip("_")
    if name.startswith("permute"):
        order = [_normal(d, rank) for d in _bound(args, kwargs, 1, "dims", ())]
    else:
        order = list(range(rank))
        if rank > 1:
            a, b = (0, 1) if name == "t" else (_normal(args[1], rank), _normal(args[2], rank))
            order[a], order[b] = order[b], order[a]
    tr.set(out, tuple(layer.transpose(order) for layer in tr.get(args[0])))


@rule("cat", "concat", "_cat")
def cat(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Ids stand one after another along the axis, and meet along the others."""
    pieces = [t for t in args[0] if not (t.ndim == 1 and t.numel() == 0)]
    d = _normal(_bound(args, kwargs, 1, "dim", 0), out.ndim)
    layers: list[IntArray] = []
    rest: list[tuple[Shadow, Sequence[int]]] = []
    if any(along(tr.get(t), d) for t in pieces):
        parts = []
        for t in pieces:
            mine = along(tr.get(t), d)
            if len(mine) > 1 or (mine and varying(mine[0]) != (d,)):
                return tr.unknown(func, args, kwargs)
            shape = [1] * out.ndim
            shape[d] = t.shape[d]
            parts.append(mine[0] if mine else np.full(shape, FIXED, dtype=np.int64))
        layers.append(np.concatenate(parts, axis=d))
    flat = list(out.shape)
    flat[d] = 1
    for t in pieces:
        others = tuple(layer for layer in tr.get(t) if layer.shape[d] == 1)
        size = list(t.shape)
        size[d] = 1
        rest.append((others, size))
    layers += combine(tr, rest, flat)
    tr.set(out, alive(layers))


@rule("stack")
def stack(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A new axis without ids; the others meet."""
    d = _normal(_bound(args, kwargs, 1, "dim", 0), out.ndim)
    shape = list(out.shape)
    del shape[d]
    shadow = meet(tr, args[0], shape)
    tr.set(out, tuple(np.expand_dims(layer, d) for layer in shadow))


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
    d = _normal(_bound(args, kwargs, 2, "dim", 0), args[0].ndim)
    shadow = tr.get(args[0])
    stops = list(np.cumsum([piece.shape[d] for piece in out]))
    for layer in along(shadow, d):
        tr.assume(layer, d, stops[:-1], func.overloadpacket.__name__)
    start = 0
    for piece, stop in zip(out, stops, strict=True):
        tr.set(piece, tuple(np.take(x, np.arange(start, stop), axis=d) if x.shape[d] > 1 else x for x in shadow))
        start = stop


@rule("slice", "narrow", "slice_copy")
def slice_(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A range of channels: its bounds must be shares of the width."""
    x = args[0]
    d = _normal(_bound(args, kwargs, 1, "dim", 0), x.ndim)
    n = x.shape[d]
    start = _bound(args, kwargs, 2, "start", 0) or 0
    step = _bound(args, kwargs, 4, "step", 1)
    start = min(max(_normal(start, n), 0), n)
    layers = []
    for layer in tr.get(x):
        if layer.shape[d] > 1:
            stop = start + out.shape[d]
            if step != 1:
                tr.pin(layer, "a strided slice picks channels by their position")
            elif (start, stop) != (0, n):
                tr.assume(layer, d, [b for b in (start, stop) if 0 < b < n], "slice")
            layer = np.take(layer, np.arange(start, start + out.shape[d] * step, step), axis=d)
        layers.append(layer)
    tr.set(out, alive(layers))


@rule("select", "unbind", "select_copy", "unbind_copy")
def select(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """One position of an axis; an axis that the plan may thin cannot be indexed by position."""
    x = args[0]
    d = _normal(_bound(args, kwargs, 1, "dim", 0), x.ndim)
    many = isinstance(out, (tuple, list))
    index = 0 if many else _normal(_bound(args, kwargs, 2, "index", 0), x.shape[d])
    for layer in along(tr.get(x), d):
        tr.assume_position(layer, d, func.overloadpacket.__name__)
    for i, result in enumerate(out if many else (out,)):
        tr.set(result, alive(np.take(x_, index + i if x_.shape[d] > 1 else 0, axis=d) for x_ in tr.get(x)))


@rule("index_select")
def index_select(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Our own selection layer starts channels of its own; any other index into channels is fixed by position."""
    x, d, index = args[0], _normal(args[1], args[0].ndim), args[2]
    layers = []
    for layer in tr.get(x):
        if layer.shape[d] > 1:
            if tr.in_select_layer() and not index.is_meta and varying(layer) == (d,):
                layer = axis_layer(tr.selected(layer.ravel(), index.numpy()), d, x.ndim)
            else:
                tr.pin(layer, "an index picks channels by their position")
                continue
        layers.append(layer)
    tr.set(out, alive(layers))


@rule("index", "_unsafe_index")
def index(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Indexed axes are fixed by position; the axes behind and before a single run of them pass."""
    x, indices = args[0], list(args[1])
    dims = [d for d, i in enumerate(indices) if i is not None]
    for d in dims:
        for layer in along(tr.get(x), d):
            tr.pin(layer, "an index picks channels by their position")
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        return tr.unknown(func, args, kwargs)
    inserted = out.ndim - (x.ndim - len(dims))
    if any(indices[d].dtype in (torch.bool, torch.uint8) for d in dims):
        return tr.unknown(func, args, kwargs)
    layers = []
    for layer in tr.get(x):
        if not set(varying(layer)) & set(dims):
            head, tail = layer.shape[: dims[0]], layer.shape[dims[-1] + 1 :]
            layers.append(layer.reshape(head + (1,) * inserted + tail))
    tr.set(out, alive(layers))


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def fresh(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Made from nothing but a dtype and a device: no channels."""


@rule("roll", "flip", "rot90")
def roll(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Rotating or flipping positions passes axes without ids, and pins the others."""
    dims = _bound(args, kwargs, 2 if func.overloadpacket.__name__ == "roll" else 1, "dims", ())
    dims = [dims] if isinstance(dims, int) else list(dims)
    moved = {_normal(d, args[0].ndim) for d in dims} or set(range(args[0].ndim))
    for layer in tr.get(args[0]):
        if moved & set(varying(layer)):
            tr.pin(layer, f"{func.overloadpacket.__name__} moves channels by position")
    tr.set(out, tuple(x for x in tr.get(args[0]) if not moved & set(varying(x))))


@rule("repeat", "tile")
def repeat(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Copies carry the ids of what they copy."""
    counts = [out.shape[d] for d in range(out.ndim)]
    layers = []
    for layer in pad_rank(tr.get(args[0]), out.ndim):
        reps = [counts[d] // n if n > 1 else 1 for d, n in enumerate(layer.shape)]
        if any(r > 1 for r in reps):
            tr.suppose(layer)
        layers.append(np.tile(layer, reps))
    tr.set(out, tuple(layers))


@rule("pixel_shuffle")
def pixel_shuffle(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """r x r consecutive channels become one: they go together."""
    area, layers = args[1] ** 2, []
    for layer in tr.get(args[0]):
        if varying(layer) == (layer.ndim - 3,):
            blocks = layer.reshape(-1, area)
            tr.join(blocks, blocks[:, :1])
            layers.append(axis_layer(blocks[:, 0], layer.ndim - 3, layer.ndim))
        else:
            tr.pin(layer, "pixel_shuffle over an axis that is not the channels'")
    tr.set(out, alive(layers))


@rule("pixel_unshuffle")
def pixel_unshuffle(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """One channel becomes r x r."""
    layers = []
    for layer in tr.get(args[0]):
        if varying(layer) == (layer.ndim - 3,):
            layers.append(axis_layer(np.repeat(layer.ravel(), args[1] ** 2), layer.ndim - 3, layer.ndim))
        else:
            tr.pin(layer, "pixel_unshuffle over an axis that is not the channels'")
    tr.set(out, alive(layers))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Interleaves ``groups`` runs of channels: what ends up side by side goes together."""
    layers = []
    for layer in tr.get(args[0]):
        if varying(layer) == (1,):
            table = layer.reshape(args[1], -1)
            tr.assume_columns(table, "channel_shuffle")
            layers.append(axis_layer(table.T.ravel(), 1, layer.ndim))
        else:
            tr.pin(layer, "channel_shuffle over an axis that is not the channels'")
    tr.set(out, alive(layers))


@rule("constant_pad_nd", "pad")
def constant_pad(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Padded positions of a channel axis are fixed data."""
    x, pads = args[0], list(args[1])
    layers = []
    for layer in tr.get(x):
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
    tr.set(out, alive(layers))


@rule("im2col", "unfold_im2col")
def im2col(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A channel becomes kernel-many consecutive rows."""
    x = args[0]
    layers = []
    for layer in tr.get(x):
        if varying(layer) == (1,) and x.ndim == 4:
            layers.append(axis_layer(np.repeat(layer.ravel(), out.shape[1] // x.shape[1]), 1, 3))
        else:
            tr.pin(layer, "unfold over an axis that is not the channels'")
    tr.set(out, alive(layers))


# --- spatial -----------------------------------------------------------------------------------------------------


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "max_pool2d_with_indices", "cudnn_grid_sampler")
def spatial(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Pools, resizes and samples positions; channels pass one by one."""
    x = args[0]
    name = func.overloadpacket.__name__
    count = next((k for k in (3, 2, 1) if f"{k}d" in name), x.ndim - 2)
    passing = []
    for layer in tr.get(x):
        if any(d >= x.ndim - count for d in varying(layer)):
            tr.pin(layer, f"{name} works on positions")
        else:
            passing.append(layer)
    for t in args[1:]:
        if isinstance(t, torch.Tensor):
            for layer in tr.get(t):
                tr.pin(layer, f"{name} reads positions from it")
    for result in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(result, torch.Tensor) and result.ndim == x.ndim:
            tr.set(result, tuple(passing))


def reduction(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Sums, means, maxima: what is reduced cannot be thinned, the other axes pass."""
    x = args[0]
    names = [a.name for a in func._schema.arguments]
    dims = _bound(args, kwargs, names.index("dim"), "dim", None)
    keep = _bound(args, kwargs, names.index("keepdim"), "keepdim", False)
    dims = range(x.ndim) if dims is None or (isinstance(dims, (list, tuple)) and not dims) else dims
    gone = {_normal(d, x.ndim) for d in ([dims] if isinstance(dims, int) else dims)}
    name = func.overloadpacket.__name__
    layers = []
    for layer in tr.get(x):
        if gone & set(varying(layer)):
            tr.pin(layer, f"{name} reduces over channels")
        elif tr.is_parameter(x):
            # A weight divided by its own norm: a masked row would be 0 / 0.
            tr.pin(layer, f"{name} normalizes a weight")
        elif keep:
            layers.append(layer)
        else:
            layers.append(layer.reshape([n for d, n in enumerate(layer.shape) if d not in gone]))
    for result in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(result, torch.Tensor):
            tr.set(result, alive(layers))


@rule(
    "softmax",
    "_softmax",
    "_safe_softmax",
    "log_softmax",
    "_log_softmax",
    "cumsum",
    "cumprod",
    "sort",
    "topk",
    "logcumsumexp",
)
def along_axis(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Every element depends on the whole axis: an axis of channels is pinned, the others pass."""
    x = args[0]
    position = 2 if func.overloadpacket.__name__ == "topk" else 1
    d = _normal(_bound(args, kwargs, position, "dim", -1), x.ndim)
    passing = []
    for layer in tr.get(x):
        if layer.shape[d] > 1:
            tr.pin(layer, f"{func.overloadpacket.__name__} over channels")
        else:
            passing.append(layer)
    for result in out if isinstance(out, (tuple, list)) else (out,):
        tr.set(result, tuple(passing))


# --- normalization -----------------------------------------------------------------------------------------------


def batch_norm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Parameters and running statistics belong to the channels they normalize; other axes are statistics."""
    x = args[0]
    tensors = [t for t in args[1:5] if isinstance(t, torch.Tensor) and t.ndim == 1]
    mine, rest = [], []
    for layer in tr.get(x):
        if varying(layer) == (1,):
            mine.append(layer)
        else:
            tr.pin(layer, "batch_norm takes statistics over it")
            rest.append(layer)
    result = out[0] if isinstance(out, (tuple, list)) else out
    if x.shape[1] == 1:
        return
    ids = tr.norm(args[1:5], mine[0].ravel() if mine else None)
    for t in tensors:
        own = tr.axis_ids(t, 0)
        if ids is not None and own is not None:
            tr.join(own, ids)
        elif own is not None:
            tr.pin(own, "normalizes data that is not the network's own channels")
        elif ids is not None:
            tr.pin(ids, "is normalized with constants")
    tr.set(result, (axis_layer(ids, 1, x.ndim),) if ids is not None else ())


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over the normalized axes: removing a channel there changes the others."""
    x, shape = args[0], args[1]
    first = x.ndim - len(shape)
    passing = []
    for layer in tr.get(x):
        if any(d >= first for d in varying(layer)):
            tr.inexact(layer, f"{func.overloadpacket.__name__} takes statistics over channels")
        passing.append(layer)
    operands: list[tuple[Shadow, Sequence[int]]] = [(tuple(passing), tuple(x.shape))]
    operands += [(tr.get(t), tuple(t.shape)) for t in args[2:4] if isinstance(t, torch.Tensor)]
    shadow = combine(tr, operands, x.shape)
    tr.other_norm("layer", args[2] if len(args) > 2 else None)
    tr.set(out[0] if isinstance(out, (tuple, list)) else out, shadow)


@rule("native_group_norm", "group_norm")
def group_norm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over runs of channels; with one channel per run it is exact."""
    native = func.overloadpacket.__name__ == "native_group_norm"
    x = args[0]
    weight, bias, groups = (args[1], args[2], args[6]) if native else (args[2], args[3], args[1])
    layers = tr.get(x)
    result = out[0] if isinstance(out, (tuple, list)) else out
    for layer in layers:
        if varying(layer) == (1,):
            if groups != x.shape[1]:
                tr.inexact(layer, "group_norm takes statistics over channels")
                tr.balance(layer.reshape(groups, -1), "group_norm")
            else:
                tr.per_channel_groups(weight)
        else:
            tr.pin(layer, "group_norm takes statistics over it")
    shape = (1, x.shape[1]) + (1,) * (x.ndim - 2)
    operands: list[tuple[Shadow, Sequence[int]]] = [(layers, tuple(x.shape))]
    for t in (weight, bias):
        if isinstance(t, torch.Tensor):
            own = tr.axis_ids(t, 0)
            operands.append(((axis_layer(own, 1, x.ndim),) if own is not None else (), shape))
    tr.other_norm("group", weight)
    tr.set(result, combine(tr, operands, x.shape))


# --- contractions ------------------------------------------------------------------------------------------------


@rule("convolution", "_convolution", "convolution_overrideable", "conv1d", "conv2d", "conv3d", "conv_transpose2d")
def convolution(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Input channels meet the weight's input axis; the result has the channels of its output axis."""
    x, weight, bias = args[0], args[1], args[2]
    name = func.overloadpacket.__name__
    if name not in ("convolution", "_convolution", "convolution_overrideable"):
        return tr.unknown(func, args, kwargs)
    transposed, groups = bool(args[6]), int(args[8])
    rank, spatial_rank = x.ndim, weight.ndim - 2
    channel = rank - spatial_rank - 1
    incoming: IntArray | None = None
    for layer in tr.get(x):
        if varying(layer) == (channel,):
            incoming = layer.ravel()
        else:
            tr.pin(layer, "a convolution over channels as if they were positions")
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    positions = (x.shape if transposed else out.shape)[channel + 1 :]
    batch = math.prod(x.shape[:channel])
    outgoing = tr.convolve(
        weight, bias, incoming, x.shape[channel], out.shape[channel], groups, in_axis, out_axis,
        batch * math.prod(positions) * math.prod(weight.shape[2:]), (x.numel(), out.numel()),
    )  # fmt: skip
    tr.set(out, (axis_layer(outgoing, channel, rank),) if outgoing is not None else ())


@rule("mm", "bmm", "matmul", "dot", "mv")
def matmul(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Rows meet columns along the contracted axis."""
    if args[0].ndim not in (2, 3) or args[0].ndim != args[1].ndim:
        return tr.unknown(func, args, kwargs)
    tr.set(out, tr.multiply(args[0], args[1], out))


@rule("addmm", "baddbmm")
def addmm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A product, and a sum with the bias."""
    product = tr.multiply(args[1], args[2], out)
    tr.set(out, combine(tr, [(tr.get(args[0]), tuple(args[0].shape)), (product, tuple(out.shape))], out.shape))


@rule("linear")
def linear(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """x W^T + b, when it was not decomposed."""
    x, weight = args[0], args[1]
    bias = _bound(args, kwargs, 2, "bias", None)
    shadow = tr.multiply(x, weight, out, transposed=True)
    if bias is not None:
        shadow = combine(tr, [(shadow, tuple(out.shape)), (tr.get(bias), tuple(bias.shape))], out.shape)
    tr.set(out, shadow)


@rule("embedding")
def embedding(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Rows are looked up by position, columns are channels."""
    layers = []
    for layer in tr.get(args[0]):
        if layer.shape[0] > 1:
            tr.fix(layer)
        else:
            tr.facts.producers.append((tr.here(), layer.ravel()))
            layers.append(layer.reshape((1,) * (out.ndim - 1) + (-1,)))
    tr.set(out, alive(layers))


def attention(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Fused attention scales by the head's width: heads stay whole."""
    for t in args[:3]:
        for layer in tr.get(t):
            tr.pin(layer, "attention heads are kept whole")
    result = out[0] if isinstance(out, (tuple, list)) else out
    value = tr.get(args[2])
    tr.set(result, value if result.shape[-1] == args[2].shape[-1] else ())
