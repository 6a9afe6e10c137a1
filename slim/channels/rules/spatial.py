"""Operations over positions, and over whole axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from slim.channels.ids import alive, varying
from slim.channels.rules.registry import argument, positive_dim, rule
from slim.channels.tracer import Tracer


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "max_pool2d_with_indices", "cudnn_grid_sampler")
def spatial(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Pools, resizes and samples positions; channels pass one by one."""
    x = args[0]
    name = func.overloadpacket.__name__
    count = next((k for k in (3, 2, 1) if f"{k}d" in name), x.ndim - 2)
    passing = tr.outside(tr.shadow_of(x), range(x.ndim - count, x.ndim), f"{name} works on positions")
    for t in args[1:]:
        if isinstance(t, torch.Tensor):
            for layer in tr.shadow_of(t):
                tr.pin(layer, f"{name} reads positions from it")
    for result in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(result, torch.Tensor) and result.ndim == x.ndim:
            tr.set_shadow(result, passing)


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Pools regions of pictures; channels pass one by one."""
    for layer in tr.shadow_of(args[1]):
        tr.pin(layer, f"{func.overloadpacket.__name__} reads regions from it")
    passing = tr.outside(tr.shadow_of(args[0]), (0, 2, 3), f"{func.overloadpacket.__name__} works on positions")
    for result in out if isinstance(out, tuple) else (out,):
        tr.set_shadow(result, passing)


STATISTICS = {"sum", "mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "logsumexp"}
STATISTICS |= {"amax", "amin", "max", "min", "nansum", "count_nonzero"}


def _positive(order: Any) -> bool:
    return isinstance(order, (int, float)) and order > 0


def reduction(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Sums, means, maxima: the other axes pass. What is reduced can go from a sum that it adds nothing to."""
    x = args[0]
    names = [a.name for a in func._schema.arguments]
    dims = argument(args, kwargs, names.index("dim"), "dim", None) if "dim" in names else None
    keep = argument(args, kwargs, names.index("keepdim"), "keepdim", False) if "keepdim" in names else False
    dims = range(x.ndim) if dims is None or (isinstance(dims, (list, tuple)) and not dims) else dims
    gone = {positive_dim(d, x.ndim) for d in ([dims] if isinstance(dims, int) else dims)}
    name = func.overloadpacket.__name__
    adds = name in ("sum", "nansum", "count_nonzero") or (
        name == "linalg_vector_norm" and _positive(args[1] if len(args) > 1 else 2)
    )
    layers = []
    for layer in tr.shadow_of(x):
        inside = set(varying(tr.tight(layer)))
        if inside and inside <= gone and name in STATISTICS and not tr.is_parameter(x):
            if adds:
                tr.sum_over(x, layer, out, name)
            else:
                tr.record.raw_reads.append(layer.ravel())
                tr.inexact(layer, f"{name} reduces over channels")
            continue
        layer = tr.keep_whole(layer, tuple(gone), f"{name} reduces over channels")
        if gone & set(varying(layer)):
            continue
        if tr.is_parameter(x):
            # A weight divided by its own norm: a masked row would be 0 / 0.
            tr.pin(layer, f"{name} normalizes a weight; slim.fold(model, inputs) makes it a plain one")
        elif keep:
            layers.append(layer)
        else:
            layers.append(layer.reshape([n for d, n in enumerate(layer.shape) if d not in gone]))
    for result in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(result, torch.Tensor):
            tr.set_shadow(result, alive(layers))


@rule(
    "softmax",
    "_softmax",
    "_safe_softmax",
    "log_softmax",
    "_log_softmax",
    "cumsum",
    "cumprod",
    "cummax",
    "cummin",
    "sort",
    "topk",
    "logcumsumexp",
)
def along_axis(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Every element depends on the whole axis: an axis of channels is pinned, the others pass."""
    x = args[0]
    position = 2 if func.overloadpacket.__name__ == "topk" else 1
    d = positive_dim(argument(args, kwargs, position, "dim", -1), x.ndim)
    passing = tr.outside(tr.shadow_of(x), (d,), f"{func.overloadpacket.__name__} over channels")
    for result in out if isinstance(out, (tuple, list)) else (out,):
        tr.set_shadow(result, passing)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "tril", "triu")
def along_axes(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Fourier transforms and triangles: axes of positions; one of channels is pinned, the others pass."""
    x, name = args[0], func.overloadpacket.__name__
    dims = [positive_dim(d, x.ndim) for d in (args[1] if "fft" in name else (-2, -1))]
    tr.set_shadow(out, tr.outside(tr.shadow_of(x), dims, f"{name.strip('_')} over channels"))


@rule("view_as_real")
def view_as_real(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Real and imaginary parts become an axis, behind the others."""
    tr.set_shadow(out, tuple(layer[..., None] for layer in tr.shadow_of(args[0])))


@rule("view_as_complex")
def view_as_complex(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """The last axis becomes real and imaginary parts."""
    reason = "view_as_complex takes channels by their position"
    shadow = tr.outside(tr.shadow_of(args[0]), (args[0].ndim - 1,), reason)
    tr.set_shadow(out, tuple(layer[..., 0] for layer in shadow))
