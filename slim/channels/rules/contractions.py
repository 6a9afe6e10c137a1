"""Convolutions and products: input channels meet the input axis of the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from slim.channels.ids import IntArray, Shadow, alive, along, axis_layer, varying
from slim.channels.rules.elementwise import combine, own_sizes
from slim.channels.rules.registry import argument, rule
from slim.channels.trace_record import Axis, Contraction, Term
from slim.channels.tracer import COMPUTED, MIXED, Tracer


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
    samples: list[IntArray] = []
    for layer in map(tr.tight, tr.shadow_of(x)):
        if varying(layer) == (channel,):
            incoming = layer.ravel()
            continue
        reason = "a convolution over channels as if they were positions"
        layer = tr.keep_whole(layer, range(channel, rank), reason)
        if layer.size > 1 and not any(d >= channel for d in varying(layer)):
            samples.append(layer)  # heads folded into the samples
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    if incoming is not None:
        tr.product_over(incoming, x, weight)
    positions = (x.shape if transposed else out.shape)[channel + 1 :]
    batch = math.prod(x.shape[:channel])
    outgoing = convolve(
        tr,
        weight, bias, incoming, x.shape[channel], out.shape[channel], groups, in_axis, out_axis,
        batch * math.prod(positions) * math.prod(weight.shape[2:]), (x.numel(), out.numel()),
    )  # fmt: skip
    made = [axis_layer(outgoing, channel, rank)] if outgoing is not None else []
    tr.set_shadow(out, tuple(made + samples))


@rule("torchvision::deform_conv2d")
def deformable(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A convolution that reads at places of its own; what says where is kept. Pieces of the input share places."""
    x, weight, offset, mask, bias = args[:5]
    groups, pieces = int(args[11]), int(args[12])
    reading = "deform_conv2d reads positions from it"
    for layer in (*tr.shadow_of(offset), *tr.shadow_of(mask)):
        tr.pin(layer, reading)
    layers = tr.outside(tr.shadow_of(x), (0, 2, 3), "deform_conv2d works on positions")
    incoming = tr.tight(layers[0]).ravel() if layers else None
    if incoming is not None:
        tr.product_over(incoming, x, weight)
        if 1 < pieces < incoming.size:
            tr.balance(incoming.reshape(pieces, -1), "pieces of deform_conv2d")
        elif pieces > 1:
            tr.pin(incoming, "deform_conv2d reads each of its channels at places of its own")
    outgoing = convolve(
        tr,
        weight, bias, incoming, x.shape[1], out.shape[1], groups, 1, 0,
        out.shape[0] * math.prod(out.shape[2:]) * math.prod(weight.shape[2:]), (x.numel(), out.numel()),
    )  # fmt: skip
    tr.set_shadow(out, (axis_layer(outgoing, 1, 4),) if outgoing is not None else ())


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
    """Rows are looked up by position, columns are channels; places that are looked up per channel pass."""
    layers = [layer[..., None] for layer in tr.shadow_of(args[1])]
    for layer in tr.shadow_of(args[0]):
        if layer.shape[0] > 1:
            tr.mark_positions(layer)
        else:
            tr.record.producers.append((tr.location(), layer.ravel()))
            layers.append(layer.reshape((1,) * (out.ndim - 1) + (-1,)))
    tr.set_shadow(out, alive(layers))


def attention(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Fused attention scales by the head's width: heads (N, H, length, width) go whole, in q, k and v together."""
    result = out[0] if isinstance(out, (tuple, list)) else out
    operands: list[tuple[Shadow, Sequence[int]]] = []
    for t in args[:3]:
        inside = (t.ndim - 2, t.ndim - 1)
        layers = [tr.keep_whole(layer, inside, "the width of an attention head is kept") for layer in tr.shadow_of(t)]
        heads = tuple(layer for layer in layers if layer.size > 1 and not set(inside) & set(varying(layer)))
        operands.append((heads, (*t.shape[:-2], 1, 1)))
    tr.set_shadow(result, combine(tr, operands, (*result.shape[:-2], 1, 1)))


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
    computed = COMPUTED if tr.is_weight(weight) else MIXED
    if incoming is not None:
        tr.record.raw_reads.append(incoming)
    if not name:
        _mark_taps(tr, weight, computed)
    shared = groups == cin == cout > 1 and _is_one_kernel(weight)
    if groups == 1:
        own_in, own_out = tr.axis_ids(weight, in_axis), tr.axis_ids(weight, out_axis)
        _link(tr, incoming, own_in, "convolution")
    elif shared:
        own_in, own_out = None, incoming
        if incoming is not None:
            tr.assume_ids(incoming)
    elif not name:
        own_in = own_out = None
        for ids in (incoming, tr.axis_ids(weight, 0), tr.axis_ids(weight, 1)):
            if ids is not None:
                tr.pin(ids, f"a grouped convolution whose {computed[4:]}")
    else:
        own_in, own_out = _grouped(tr, name, weight, incoming, cin, cout, groups, in_axis, out_axis)
    _couple_bias(tr, bias, own_out)
    came = incoming
    if shared or (tr.location() in tr.record.regroup and groups > 1):
        own_in, incoming = None, None  # the group count follows the width, channels per group stay
    read = incoming if incoming is not None else own_in
    terms = [Term(ids, per) for ids, per in ((own_out, 1), (read, groups)) if ids is not None]
    constant = factor * (1 if own_out is not None else cout) * (1 if read is not None else cin // groups)
    activations: list[tuple[int, IntArray | None]] = [(elements[0], came), (elements[1], own_out)]
    if not tr.probing:
        name = name or tr.own_weight(weight)
        tr.record.contractions.append(Contraction(tr.location(), "conv", name, constant, terms, activations))
        if own_out is not None and not (groups == cin and groups > 1):
            tr.record.producers.append((tr.location(), own_out))
    return own_out


def _mark_taps(tr: Tracer, weight: torch.Tensor, reason: str) -> None:
    """Kernel taps of a computed weight are positions; what varies over several axes stays, for ``reason``."""
    for layer in tr.shadow_of(weight):
        if len(varying(layer)) > 1:
            tr.pin(layer, reason)
        elif varying(layer)[0] > 1:
            tr.mark_positions(layer)


def _is_one_kernel(weight: torch.Tensor) -> bool:
    """Whether every channel meets the same kernel, expanded or repeated (a blur): the forward says how often."""
    base = getattr(weight, "_slim_repeated", weight)
    return own_sizes(weight)[0] == 1 or (base is not weight and base.ndim == weight.ndim and base.shape[0] == 1)


def _couple_bias(tr: Tracer, bias: torch.Tensor | None, own_out: IntArray | None) -> None:
    """Join a bias with the output channels; where those are no channels of the network, its entries are positions."""
    ids = None if bias is None else tr.axis_ids(bias, 0)
    if ids is None:
        return
    if own_out is not None:
        tr.join(ids, own_out)
    else:
        tr.mark_positions(ids)


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
    """The ids of a grouped convolution's weight, (in axis, out axis), coupled as its groups demand.

    Depthwise: channels pass one by one. Grouped: each block loses equally many, or goes whole.
    """
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
            for place in _holders(tr, name, weight):
                tr.record.regroup[place] = Axis(name, full_axis)
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
    if not tr.probing:
        _couple_blocks(tr, name, weight, own_in, own_out, groups, regroup)
    return own_in, own_out


def _holders(tr: Tracer, name: str, weight: torch.Tensor) -> list[str]:
    """The modules whose group counts follow a weight: its own, and the one that runs where it shares the weight."""
    running = tr.stack[-1] if tr.stack else None
    shares = running is not None and running._parameters.get("weight") is weight
    return list(dict.fromkeys([name.rpartition(".")[0], *([tr.names[id(running)]] if shares else [])]))


def _couple_blocks(
    tr: Tracer,
    name: str,
    weight: torch.Tensor,
    own_in: IntArray,
    own_out: IntArray,
    groups: int,
    regroup: bool,
) -> None:
    """Blocks of a grouped convolution go whole (``grouped="whole"``), or lose equally many channels each."""
    blocks_in, blocks_out = own_in.reshape(groups, -1), own_out.reshape(groups, -1)
    if tr.grouped == "whole":
        tr.join(blocks_in, blocks_in[:, :1])
        tr.join(blocks_out, blocks_in[:, :1])
        if regroup:
            for place in _holders(tr, name, weight):
                tr.record.regroup[place] = Axis(name, -1)
        else:
            tr.pin(own_out, "a grouped convolution whose group count is not a module's")
        return
    for ids, blocks, word in ((own_in, blocks_in, "reads"), (own_out, blocks_out, "has")):
        if blocks.shape[1] == 1:
            tr.pin(ids, f"a grouped convolution {word} one channel per group")
        else:
            tr.record.balance.append((f"groups of {tr.location()}", blocks))


def multiply(tr: Tracer, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, transposed: bool = False) -> Shadow:
    """Couple ``a @ b`` (``a @ b.T`` when ``transposed``). Returns the product's shadow."""
    rank = out.ndim
    ka, kb = a.ndim - 1, (b.ndim - 1 if transposed else b.ndim - 2)
    read, left = _contracted(tr, a, ka)
    columns, right = _contracted(tr, b, kb)
    # To the axes of the product: the contracted one is of size 1 in all of these.
    right = [x if transposed is False else x.swapaxes(-1, -2) for x in right]
    right = [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in right]
    if read is not None:
        out._slim_contracted = read  # type: ignore[attr-defined]
        tr.record.raw_reads.append(read)
        tr.product_over(read, a, b)
    if a.shape[ka] > 1:
        _link(tr, read, columns, "a product")
    if rank > 2:
        left, right = _samples(tr, left, a, right, b)
    passing = [*left, *right]
    if not tr.probing:
        _count_product(tr, a, b, out, read if read is not None else columns, passing)
        for layer in right:
            if varying(layer) == (rank - 1,):
                tr.record.producers.append((tr.location(), layer.ravel()))
    return alive(passing)


def _contracted(tr: Tracer, operand: torch.Tensor, axis: int) -> tuple[IntArray | None, list[IntArray]]:
    """The ids along the contracted axis of an operand, and the layers that vary along its other axes."""
    read, passing = None, []
    for layer in map(tr.tight, tr.shadow_of(operand)):
        if varying(layer) == (axis,):
            read = layer.ravel()
        else:
            layer = tr.keep_whole(layer, (axis,), "the width of an attention head is kept")
            if layer.size > 1:
                passing.append(layer)
    return read, passing


def _samples(
    tr: Tracer, left: list[IntArray], a: torch.Tensor, right: list[IntArray], b: torch.Tensor
) -> tuple[list[IntArray], list[IntArray]]:
    """Heads folded into the samples: what both operands carry along axis 0 meets."""
    for mine, other, theirs in ((left, b, right), (right, a, left)):
        if other.ndim == 3 and other.shape[0] > 1 and not along(tuple(theirs), 0):
            reason = "a product with data that is not the network's own channels"
            mine[:] = [tr.keep_whole(x, (0,), reason) for x in mine]
    for x in along(tuple(left), 0):
        for y in along(tuple(right), 0):
            tr.join(x, y)
    return [tr.tight(x) for x in left], [tr.tight(y) for y in right]


def _count_product(
    tr: Tracer, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, read: IntArray | None, passing: list[IntArray]
) -> None:
    """Note the work of a product, with its channels as layers over (samples, rows, contracted, columns)."""
    k = a.shape[-1]
    nest = [x.reshape((1,) * (3 - x.ndim) + x.shape) for x in passing]
    nest = [x[:, :, None, :] for x in nest]
    if read is not None:
        nest.insert(0, read.reshape(1, 1, -1, 1))
    owner = tr.stack[-1] if tr.stack else None
    is_layer = owner is not None and isinstance(getattr(owner, "weight", None), torch.Tensor)
    weight = f"{tr.location()}.weight" if is_layer else None
    entering = next((x for x in tr.shadow_of(a) if x.size > 1), None)
    leaving = next((x for x in reversed(passing)), None)
    tr.record.contractions.append(
        Contraction(
            tr.location(),
            "linear" if is_layer else "matmul",
            weight,
            out.numel() * k,
            [],
            [(a.numel(), entering), (out.numel(), leaving)],
            nest,
        )
    )
