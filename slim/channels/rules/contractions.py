"""Convolutions and products: input channels meet the input axis of the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from slim.channels.ids import IntArray, Shadow, alive, axis_layer, varying
from slim.channels.rules.elementwise import combine
from slim.channels.rules.registry import argument, rule
from slim.channels.trace_record import Axis, Contraction, Term
from slim.channels.tracer import Tracer


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
    for layer in tr.shadow_of(x):
        if varying(layer) == (channel,):
            incoming = layer.ravel()
        else:
            tr.pin(layer, "a convolution over channels as if they were positions")
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    positions = (x.shape if transposed else out.shape)[channel + 1 :]
    batch = math.prod(x.shape[:channel])
    outgoing = convolve(
        tr,
        weight, bias, incoming, x.shape[channel], out.shape[channel], groups, in_axis, out_axis,
        batch * math.prod(positions) * math.prod(weight.shape[2:]), (x.numel(), out.numel()),
    )  # fmt: skip
    tr.set_shadow(out, (axis_layer(outgoing, channel, rank),) if outgoing is not None else ())


@rule("mm", "bmm", "matmul", "dot", "mv")
def matmul(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Rows meet columns along the contracted axis."""
    if args[0].ndim not in (2, 3) or args[0].ndim != args[1].ndim:
        return tr.unknown(func, args, kwargs)
    tr.set_shadow(out, multiply(tr, args[0], args[1], out))


@rule("addmm", "baddbmm")
def addmm(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A product, and a sum with the bias."""
    product = multiply(tr, args[1], args[2], out)
    tr.set_shadow(
        out, combine(tr, [(tr.shadow_of(args[0]), tuple(args[0].shape)), (product, tuple(out.shape))], out.shape)
    )


@rule("linear")
def linear(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """x W^T + b, when it was not decomposed."""
    x, weight = args[0], args[1]
    bias = argument(args, kwargs, 2, "bias", None)
    shadow = multiply(tr, x, weight, out, transposed=True)
    if bias is not None:
        shadow = combine(tr, [(shadow, tuple(out.shape)), (tr.shadow_of(bias), tuple(bias.shape))], out.shape)
    tr.set_shadow(out, shadow)


@rule("embedding")
def embedding(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Rows are looked up by position, columns are channels."""
    layers = []
    for layer in tr.shadow_of(args[0]):
        if layer.shape[0] > 1:
            tr.mark_positions(layer)
        else:
            tr.record.producers.append((tr.location(), layer.ravel()))
            layers.append(layer.reshape((1,) * (out.ndim - 1) + (-1,)))
    tr.set_shadow(out, alive(layers))


def attention(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Fused attention scales by the head's width: heads stay whole."""
    for t in args[:3]:
        for layer in tr.shadow_of(t):
            tr.pin(layer, "attention heads are kept whole")
    result = out[0] if isinstance(out, (tuple, list)) else out
    value = tr.shadow_of(args[2])
    tr.set_shadow(result, value if result.shape[-1] == args[2].shape[-1] else ())


def _link(tr: Tracer, incoming: IntArray | None, weight: IntArray | None, what: str) -> None:
    if incoming is not None and weight is not None:
        tr.join(incoming, weight)
    elif incoming is not None:
        tr.pin(incoming, f"{what} with a weight that is not the network's own")
    elif weight is not None:
        tr.pin(weight, "reads data that is not the network's own channels")


def convolve(
    tr: Tracer,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    incoming: IntArray | None,
    cin: int,
    cout: int,
    groups: int,
    in_axis: int,
    out_axis: int,
    factor: int,
    elements: tuple[int, int],
) -> IntArray | None:
    """Couple a convolution's channels. Returns the ids of its output, or None.

    ``factor`` is what multiplies (kept out) x (kept in / groups): batch x positions x kernel taps.
    """
    name = tr.name_of(weight)
    if incoming is not None:
        tr.record.raw_reads.append(incoming)
    if not name:
        for layer in tr.shadow_of(weight):
            if len(varying(layer)) > 1 or varying(layer)[0] > 1:
                tr.pin(layer, "its weight is computed over several axes")
    if groups == 1:
        own_in, own_out = tr.axis_ids(weight, in_axis), tr.axis_ids(weight, out_axis)
        _link(tr, incoming, own_in, "convolution")
    elif not name:
        own_in = own_out = None
        for ids in (incoming, tr.axis_ids(weight, 0), tr.axis_ids(weight, 1)):
            if ids is not None:
                tr.pin(ids, "a grouped convolution with a computed weight")
    else:
        own_in, own_out = _grouped(tr, name, weight, incoming, cin, cout, groups, in_axis, out_axis)
    if bias is not None and (bias_ids := tr.axis_ids(bias, 0)) is not None:
        if own_out is not None:
            tr.join(bias_ids, own_out)
        else:
            tr.mark_positions(bias_ids)
    came = incoming
    if tr.location() in tr.record.regroup and groups > 1:
        own_in, incoming = None, None  # the group count follows the width, channels per group stay
    read = incoming if incoming is not None else own_in
    terms = [Term(ids, per) for ids, per in ((own_out, 1), (read, groups)) if ids is not None]
    constant = factor * (1 if own_out is not None else cout) * (1 if read is not None else cin // groups)
    activations: list[tuple[int, Term | None]] = [
        (elements[0] // cin, Term(came)) if came is not None else (elements[0], None),
        (elements[1] // cout, Term(own_out)) if own_out is not None else (elements[1], None),
    ]
    if not tr.probing:
        tr.record.contractions.append(Contraction(tr.location(), "conv", name, constant, terms, activations))
        if own_out is not None and not (groups == cin and groups > 1):
            tr.record.producers.append((tr.location(), own_out))
    return own_out


def _grouped(
    tr: Tracer,
    name: str,
    weight: torch.Tensor,
    incoming: IntArray | None,
    cin: int,
    cout: int,
    groups: int,
    in_axis: int,
    out_axis: int,
) -> tuple[IntArray | None, IntArray | None]:
    """Depthwise: channels pass one by one. Grouped: each block loses equally many, or goes whole."""
    transposed = in_axis == 0
    split_axis = out_axis if transposed else in_axis  # the axis that the weight stores per group only
    full_axis = in_axis if transposed else out_axis
    own_full = tr.param_axis(name, full_axis, weight.shape[full_axis])
    owner = tr.modules.get(name.rpartition(".")[0])
    regroup = owner is not None and hasattr(owner, "groups")
    if groups == cin and (cout == cin or not transposed) and not (cin == cout == 1):
        if incoming is None:
            tr.pin(own_full, "reads data that is not the network's own channels")
        else:
            tr.join(own_full.reshape(cin, -1), incoming[:, None])
            if not regroup:
                tr.pin(own_full, "a depthwise convolution whose group count is not a module's")
        if owner is not None and regroup:
            tr.record.regroup[name.rpartition(".")[0]] = Axis(name, full_axis)
            if cout != cin:
                tr.record.grouped[name] = groups
                read = incoming if incoming is not None else own_full.reshape(cin, -1)[:, 0]
                tr.record.axes.setdefault(Axis(name, split_axis), read)
        return own_full if transposed else incoming, own_full
    size = cout if transposed else cin
    axis = Axis(name, split_axis)
    own_split = tr.record.axes.get(axis)
    if own_split is None:
        own_split = tr.record.axes[axis] = tr.ids.fresh(size)
    own_in, own_out = (own_full, own_split) if transposed else (own_split, own_full)
    tr.record.grouped[name] = groups
    _link(tr, incoming, own_in, "convolution")
    if tr.probing:
        return own_in, own_out
    blocks_in, blocks_out = own_in.reshape(groups, -1), own_out.reshape(groups, -1)
    if tr.grouped == "whole":
        tr.join(blocks_in, blocks_in[:, :1])
        tr.join(blocks_out, blocks_in[:, :1])
        if regroup:
            tr.record.regroup[name.rpartition(".")[0]] = Axis(name, -1)
        else:
            tr.pin(own_out, "a grouped convolution whose group count is not a module's")
    else:
        for ids, blocks, word in ((own_in, blocks_in, "reads"), (own_out, blocks_out, "has")):
            if blocks.shape[1] == 1:
                tr.pin(ids, f"a grouped convolution {word} one channel per group")
            else:
                tr.record.balance.append((f"groups of {tr.location()}", blocks))
    return own_in, own_out


def multiply(tr: Tracer, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, transposed: bool = False) -> Shadow:
    """Couple ``a @ b`` (``a @ b.T`` when ``transposed``). Returns the product's shadow."""
    rank = out.ndim
    ka, kb = a.ndim - 1, (b.ndim - 1 if transposed else b.ndim - 2)
    nb = b.ndim - 2 if transposed else b.ndim - 1
    read: IntArray | None = None
    columns: IntArray | None = None
    passing: list[IntArray] = []
    for layer in tr.shadow_of(a):
        if varying(layer) == (ka,):
            read = layer.ravel()
        elif layer.shape[ka] > 1:
            tr.pin(layer, "attention heads are kept whole")
        elif rank == 3 and a.ndim == 3 and b.ndim == 3 and varying(layer) == (0,):
            tr.pin(layer, "a product over channels as if they were samples")
        else:
            passing.append(layer)
    if read is not None:
        out._slim_contracted = read  # type: ignore[attr-defined]
    width: Term | None = None
    for layer in tr.shadow_of(b):
        where = varying(layer)
        if where == (kb,):
            columns = layer.ravel()
        elif layer.shape[kb] > 1:
            tr.pin(layer, "attention heads are kept whole")
        elif nb in where:
            moved = np.moveaxis(layer, (kb, nb), (layer.ndim - 2, layer.ndim - 1))
            passing.append(moved.reshape((1,) * (rank - moved.ndim) + moved.shape))
            width = Term(layer.ravel(), layer.size // layer.shape[nb])
        else:
            tr.pin(layer, "a product over channels as if they were samples")
    if a.shape[ka] > 1:
        _link(tr, read, columns, "a product")
    if read is not None:
        tr.record.raw_reads.append(read)
    m, k, n = out.numel() // out.shape[-1], a.shape[ka], out.shape[-1]
    rows: list[Term] = []
    for d in range(rank - 1):
        mine = [layer for layer in passing if layer.shape[d] > 1]
        if len(mine) == 1 and varying(mine[0]) == (d,):
            rows.append(Term(mine[0].ravel()))
            m //= mine[0].size
    terms = [t for t in (width, Term(read) if read is not None else None) if t is not None] + rows
    constant = m * (1 if read is not None else k) * (1 if width is not None else n)
    activations: list[tuple[int, Term | None]] = [
        (a.numel() // k, Term(read)) if read is not None else (a.numel(), None),
        (out.numel() // n, width) if width is not None else (out.numel(), None),
    ]
    owner = tr.stack[-1] if tr.stack else None
    is_layer = owner is not None and isinstance(getattr(owner, "weight", None), torch.Tensor)
    weight = f"{tr.location()}.weight" if is_layer else None
    if not tr.probing:
        tr.record.contractions.append(
            Contraction(tr.location(), "linear" if is_layer else "matmul", weight, constant, terms, activations)
        )
        if width is not None and width.per == 1:
            tr.record.producers.append((tr.location(), width.ids))
    if rank > 2 and len(passing) > 1:  # both operands may carry ids along the axes of samples
        combine(tr, [((layer,), layer.shape) for layer in passing], (*out.shape[:-2], 1, 1))
    return alive(passing)
