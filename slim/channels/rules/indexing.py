"""Elements picked and put by index: an axis that is indexed is fixed by position, the others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from slim.channels.ids import alive, axis_layer, pad_rank, varying
from slim.channels.rules.elementwise import combine, own_sizes
from slim.channels.rules.norms import in_select_layer, selected
from slim.channels.rules.registry import argument, positive_dim, rule
from slim.channels.tracer import Tracer

_BY_POSITION = "an index picks channels by their position"


@rule("index_select")
def index_select(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Our own selection layer starts channels of its own; any other index into channels is fixed by position."""
    x, d, index = args[0], positive_dim(args[1], args[0].ndim), args[2]
    layers = [axis_layer(told.ravel(), d, out.ndim) for told in tr.shadow_of(index)]  # places per channel
    for layer in tr.shadow_of(x):
        if layer.shape[d] > 1:
            if in_select_layer(tr) and not index.is_meta and varying(layer) == (d,):
                layer = axis_layer(selected(tr, layer.ravel(), index.numpy()), d, x.ndim)
            else:
                tr.pin(layer, _BY_POSITION)
                continue
        layers.append(layer)
    tr.set_shadow(out, alive(layers))


@rule("index", "_unsafe_index")
def index(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Indexed axes are fixed by position; the axes behind and before a single run of them pass, and the index's own."""
    x, indices = args[0], list(args[1])
    dims = [d for d, i in enumerate(indices) if i is not None]
    shadow = tuple(tr.keep_whole(y, dims, _BY_POSITION) for y in tr.shadow_of(x))
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        return tr.unknown(func, args, kwargs)
    inserted = out.ndim - (x.ndim - len(dims))
    if any(indices[d].dtype in (torch.bool, torch.uint8) for d in dims):
        return tr.unknown(func, args, kwargs)
    before, behind = (1,) * dims[0], (1,) * (x.ndim - 1 - dims[-1])
    places = out.shape[dims[0] : dims[0] + inserted]
    told = combine(tr, [(tr.shadow_of(indices[d]), own_sizes(indices[d])) for d in dims], places)
    layers = [layer.reshape(before + pad_rank((layer,), inserted)[0].shape + behind) for layer in told]
    for layer in shadow:
        if not set(varying(layer)) & set(dims):
            head, tail = layer.shape[: dims[0]], layer.shape[dims[-1] + 1 :]
            layers.append(layer.reshape(head + (1,) * inserted + tail))
    tr.set_shadow(out, alive(layers))


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """One number is put where a mask or positions say."""
    x, indices, values = args[:3]
    dims = [d for d, i in enumerate(indices) if i is not None]
    flags = [indices[d].dtype in (torch.bool, torch.uint8) for d in dims]
    if values.numel() > 1 or (any(flags) and (len(dims) > 1 or dims != [0])):
        return tr.unknown(func, args, kwargs)
    if any(flags):
        mask = indices[0]
        behind = (1,) * (x.ndim - mask.ndim)
        told = tuple(layer.reshape(*layer.shape, *behind) for layer in tr.shadow_of(mask))
        return tr.set_shadow(out, combine(tr, [(tr.shadow_of(x), x.shape), (told, (*mask.shape, *behind))], x.shape))
    _pin_places(tr, *(indices[d] for d in dims))
    shadow = [tr.keep_whole(layer, dims, _BY_POSITION) for layer in tr.shadow_of(x)]
    tr.set_shadow(out, alive(shadow))


@rule("gather")
def gather(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """An element of one axis for each place of the index, which meets the data along the others."""
    x, d, index = args[0], positive_dim(args[1], args[0].ndim), args[2]
    if not x.ndim:
        return
    parts = [(tr.outside(tr.shadow_of(t), (d,), _BY_POSITION), _without(own_sizes(t), d)) for t in (x, index)]
    for layer in parts[0][0]:
        if any(index.shape[k] < x.shape[k] for k in varying(layer)):
            return tr.unknown(func, args, kwargs)  # a range of channels
        tr.assume_ids(layer)  # somebody said how far the index is expanded
    tr.set_shadow(out, combine(tr, parts, _without(out.shape, d)))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Elements are put at places of one axis, and meet data and index along the others."""
    d = positive_dim(args[1], out.ndim)
    tensors = [t for t in (args[0], *args[2:4]) if isinstance(t, torch.Tensor) and t.ndim]
    parts = [(tr.outside(tr.shadow_of(t), (d,), _BY_POSITION), _without(own_sizes(t), d)) for t in tensors]
    for layer in (layer for shadow, _ in parts for layer in shadow):
        if any(t.shape[k] != out.shape[k] for k in varying(layer) for t in tensors):
            return tr.unknown(func, args, kwargs)  # a range of channels
        tr.assume_ids(layer)  # somebody said how far the index is expanded
    tr.set_shadow(out, combine(tr, parts, _without(out.shape, d)))


@rule("index_fill")
def index_fill(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """One number is put at positions of one axis."""
    d = positive_dim(args[1], out.ndim)
    _pin_places(tr, args[2])
    tr.set_shadow(out, tr.outside(tr.shadow_of(args[0]), (d,), _BY_POSITION))


@rule("slice_scatter", "select_scatter")
def slice_scatter(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A piece of one axis is replaced, and meets the rest along the others."""
    d = positive_dim(argument(args, kwargs, 2, "dim", 0), out.ndim)
    shadows = [tr.shadow_of(args[0]), tr.shadow_of(args[1])]
    sizes = [list(args[0].shape), list(args[1].shape)]
    if args[1].ndim < out.ndim:
        shadows[1] = tuple(np.expand_dims(layer, d) for layer in shadows[1])
        sizes[1].insert(d, 1)
    parts = [(tr.outside(s, (d,), _BY_POSITION), _without(z, d)) for s, z in zip(shadows, sizes, strict=True)]
    tr.set_shadow(out, combine(tr, parts, _without(out.shape, d)))


@rule("bucketize", "searchsorted")
def bucketize(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Every element is looked up among the same boundaries."""
    x, boundaries = args[:2] if func.overloadpacket.__name__ == "bucketize" else (args[1], args[0])
    if not isinstance(x, torch.Tensor) or boundaries.ndim > 1:
        return tr.unknown(func, args, kwargs)
    _pin_places(tr, boundaries)
    tr.set_shadow(out, tr.shadow_of(x))


@rule("index_add", "index_copy", "index_reduce")
def index_add(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Slices are put at positions of one axis, and meet along the others."""
    x, d, source = args[0], positive_dim(args[1], args[0].ndim), args[3]
    _pin_places(tr, args[2])
    parts = [(tr.outside(tr.shadow_of(t), (d,), _BY_POSITION), _without(t.shape, d)) for t in (x, source)]
    tr.set_shadow(out, combine(tr, parts, _without(out.shape, d)))


def _pin_places(tr: Tracer, *indices: torch.Tensor) -> None:
    """What says where something is put stays: there is no place for what does not go anywhere."""
    for layer in (layer for t in indices for layer in tr.shadow_of(t)):
        tr.pin(layer, _BY_POSITION)


def _without(sizes: Sequence[int], axis: int) -> list[int]:
    """The sizes, but 1 along an axis on which nothing meets."""
    return [1 if d == axis else n for d, n in enumerate(sizes)]
