"""Normalization layers, and the selection layers in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from slim.channels.ids import IntArray, Shadow, axis_layer, varying
from slim.channels.rules.elementwise import combine
from slim.channels.rules.registry import rule
from slim.channels.trace_record import Axis, NormCall
from slim.channels.tracer import STANDARDIZED, Tracer


def batch_norm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Parameters and running statistics belong to the channels they normalize; other axes are statistics."""
    x = args[0]
    tensors = [t for t in args[1:5] if isinstance(t, torch.Tensor) and t.ndim == 1]
    weight = tr.is_weight(x) and not isinstance(args[3], torch.Tensor)  # with running statistics, a learned input
    mine, rest = [], []
    for layer in tr.shadow_of(x):
        if varying(layer) == (1,):
            mine.append(layer)
        elif weight and 1 not in varying(layer):
            tr.inexact(layer, STANDARDIZED)
            rest.append(layer)
        else:
            tr.pin(layer, "batch_norm takes statistics over it")
    result = out[0] if isinstance(out, (tuple, list)) else out
    if weight:
        return standardized(tr, args[1:3], mine, rest, x, result)
    if x.shape[1] == 1:
        record_single_channel_norm(tr, args[1:5])
        return
    ids: IntArray | None = mine[0].ravel() if mine else None
    # PyTorch runs an instance norm as a batch norm over (1, N C, ...), its parameters repeated.
    repeated = [getattr(t, "_slim_repeated", None) for t in args[1:5]]
    if tr.name_of(repeated[0]):
        record_other_norm(tr, "instance", *repeated, read=ids)
    else:
        ids = record_norm(tr, args[1:5], ids)
    for t in tensors:
        own = tr.axis_ids(t, 0)
        if ids is not None and own is not None:
            tr.join(own, ids)
        elif own is not None:
            tr.pin(own, "normalizes data that is not the network's own channels")
        elif ids is not None:
            tr.pin(ids, "is normalized with constants")
    tr.set_shadow(result, (axis_layer(ids, 1, x.ndim),) if ids is not None else ())


def standardized(
    tr: Tracer, gains: Sequence[Any], rows: list[IntArray], rest: list[IntArray], weight: torch.Tensor, result: Any
) -> None:
    """A weight, one row a channel: its rows go with their gains. Columns are part of every row's statistics."""
    shape = (1, weight.shape[1]) + (1,) * (weight.ndim - 2)
    operands: list[tuple[Shadow, Sequence[int]]] = [((*rows,), shape)]
    for gain in gains:
        own = tr.axis_ids(gain, 0) if isinstance(gain, torch.Tensor) and gain.ndim == 1 else None
        if own is not None:
            operands.append(((axis_layer(own, 1, weight.ndim),), shape))
    tr.set_shadow(result, (*combine(tr, operands, shape), *rest))


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over the normalized axes: removing a channel there changes the others."""
    x, shape = args[0], args[1]
    first = x.ndim - len(shape)
    passing = []
    for layer in map(tr.tight, tr.shadow_of(x)):
        if any(d < first for d in varying(layer)):
            layer = tr.keep_whole(layer, range(first, x.ndim), "statistics over channels")
        elif any(d >= first for d in varying(layer)):
            tr.inexact(layer, f"{func.overloadpacket.__name__} takes statistics over channels")
        passing.append(layer)
    operands: list[tuple[Shadow, Sequence[int]]] = [(tuple(passing), tuple(x.shape))]
    operands += [(tr.shadow_of(t), tuple(t.shape)) for t in args[2:4] if isinstance(t, torch.Tensor)]
    shadow = combine(tr, operands, x.shape)
    record_other_norm(tr, "layer", *args[2:4])
    tr.set_shadow(out[0] if isinstance(out, (tuple, list)) else out, shadow)


@rule("native_group_norm", "group_norm")
def group_norm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over runs of channels; with one channel per run it is exact."""
    native = func.overloadpacket.__name__ == "native_group_norm"
    x = args[0]
    weight, bias, groups = (args[1], args[2], args[6]) if native else (args[2], args[3], args[1])
    layers = tr.shadow_of(x)
    result = out[0] if isinstance(out, (tuple, list)) else out
    for layer in layers:
        if varying(layer) == (1,):
            tr.note_sizes((layer,))
            tr.note_pieces([layer] if groups == x.shape[1] else [], 1)  # one by one, if the count follows the width
            if groups != x.shape[1]:
                tr.inexact(layer, "group_norm takes statistics over channels")
                tr.balance(layer.reshape(groups, -1), "group_norm")
            else:
                per_channel_groups(tr, weight, layer.ravel())
        else:
            tr.pin(layer, "group_norm takes statistics over it")
    shape = (1, x.shape[1]) + (1,) * (x.ndim - 2)
    operands: list[tuple[Shadow, Sequence[int]]] = [(layers, tuple(x.shape))]
    for t in (weight, bias):
        if isinstance(t, torch.Tensor):
            own = tr.axis_ids(t, 0)
            operands.append(((axis_layer(own, 1, x.ndim),) if own is not None else (), shape))
    record_other_norm(tr, "group", weight, bias)
    tr.set_shadow(result, combine(tr, operands, x.shape))


def in_select_layer(tr: Tracer) -> bool:
    """Whether the innermost module is our own selection layer."""
    return bool(tr.stack) and getattr(tr.stack[-1], "is_channel_select", False)


def selected(tr: Tracer, stream: IntArray, index: IntArray) -> IntArray:
    """The channels behind a selection layer: their own where streams are read selectively, else the stream's."""
    name, read = tr.names[id(tr.stack[-1])], stream[index]
    if len(read) == 1:  # a layer of one channel has no ids: nothing else would hold what it reads
        tr.pin(read, "the only channel of its layer")
    if tr.probing:
        return next(own for where, _, own in tr.record.selects if where == name)
    own = tr.ids.fresh(len(read)) if tr.residual == "select" else read
    tr.record.streams.setdefault(name, stream)  # in the stream's own order, for a new index
    tr.record.selects.append((name, read, own))
    return own


def record_norm(tr: Tracer, tensors: Sequence[Any], read: IntArray | None) -> IntArray | None:
    """Note a batch normalization; returns the ids of what it emits."""
    weight, bias, mean, var = (tr.name_of(t) for t in tensors)
    module = tr.location()
    if tr.probing:
        own = tr.record.axes.get(Axis(weight or mean or "", 0)) if tr.residual == "select" else None
        if own is None or read is None:
            return read
        _check_reads(tr, weight or mean, own, read)
        return own
    behind = tr.stack and any(getattr(m, "is_channel_select", False) for m in tr.stack[-1].children())
    earlier = tr.selective_norms.get(weight or "")
    if earlier is not None and read is not None:
        if earlier.read is not None and not np.array_equal(earlier.read, read):
            # Read from two places: one selection cannot serve both, so it goes with what it reads.
            tr.join(earlier.own, earlier.read)
            tr.join(earlier.own, read)
            earlier.selective = False
        return earlier.own
    if read is not None and tr.residual == "select" and weight and weight not in tr.seen_norms and not behind:
        # Its own channels, until the graph shows that nobody else reads this stream.
        own = tr.param_axis(weight, 0, len(read))
        note = NormCall("batch", module, weight, bias, mean, var, own, read, selective=True)
        tr.selective_norms[weight] = note
        tr.record.norms.append(note)
        return own
    own = read
    if own is None:
        first = next((t for t in tensors if tr.name_of(t)), None)
        own = tr.axis_ids(first, 0) if first is not None else None
        if own is not None:
            tr.pin(own, "normalizes data that is not the network's own channels")
    if weight and weight in tr.seen_norms:
        return own
    tr.seen_norms.add(weight or "")
    if own is not None:
        tr.record.norms.append(NormCall("batch", module, weight, bias, mean, var, own, read))
    return own


def _check_reads(tr: Tracer, name: str | None, own: IntArray, read: IntArray) -> None:
    """While probing: a conflict where the scale of a channel meets another channel of the stream than it did."""
    find, size = tr.ids.find, len(tr.ids)
    notes = [note for note in tr.record.norms if name == (note.weight or note.mean)]
    known = [find(note.own) * size + find(note.read) for note in notes if note.read is not None]
    if known and len(own) == len(read):
        other = ~np.isin(find(own) * size + find(read), np.concatenate(known))
        tr.conflict(own[other])
        tr.conflict(read[other])


def record_single_channel_norm(tr: Tracer, tensors: Sequence[Any]) -> None:
    """A normalization of one channel: its scale is listed, and stays."""
    weight, bias, mean, var = (tr.name_of(t) for t in tensors)
    if weight and weight not in tr.seen_norms and not tr.probing:
        tr.seen_norms.add(weight)
        own = tr.param_axis(weight, 0, 1)
        tr.pin(own, "the only channel of its layer")
        tr.record.norms.append(NormCall("batch", tr.location(), weight, bias, mean, var, own, None))


def record_other_norm(
    tr: Tracer,
    kind: str,
    weight: Any = None,
    bias: Any = None,
    mean: Any = None,
    var: Any = None,
    *,
    read: IntArray | None = None,
) -> None:
    """Note a layer, group or instance normalization with a scale."""
    name = tr.name_of(weight)
    if name and not tr.probing and weight.ndim == 1 and weight.numel() > 1:
        if name in tr.seen_norms:
            return
        tr.seen_norms.add(name)
        own = tr.param_axis(name, 0, weight.numel())
        shift, mean, var = (tr.name_of(t) for t in (bias, mean, var))
        tr.record.norms.append(NormCall(kind, tr.location(), name, shift, mean, var, own, read))


def per_channel_groups(tr: Tracer, weight: Any, channels: IntArray) -> None:
    """A group norm with one channel per group: its group count follows its width."""
    name = tr.name_of(weight)
    if name and tr.stack and hasattr(tr.stack[-1], "num_groups"):
        tr.record.regroup[tr.location()] = Axis(name, 0)
    elif weight is not None:
        tr.pin(tr.param_axis(name, 0, weight.numel()) if name else np.empty(0, np.int64), "fixed group count")
    elif tr.stack and isinstance(tr.stack[-1], nn.GroupNorm):
        tr.record.settings.update({(tr.location(), key): channels for key in ("num_groups", "num_channels")})
    else:
        tr.assume_ids(channels)
