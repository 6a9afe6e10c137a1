"""Windows over positions: cut out, added back, and undone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from slim.channels.rules.elementwise import join_operands
from slim.channels.rules.movement import as_one, of_channels
from slim.channels.rules.registry import positive_dim, rule
from slim.channels.tracer import Tracer

_NONE = -1  # no axis of channels: a sample without a batch


@rule("im2col", "unfold_im2col")
def im2col(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A channel becomes kernel-many consecutive rows."""
    x = args[0]
    carry = partial(np.repeat, repeats=out.shape[-2] // x.shape[-3])
    tr.set_shadow(out, of_channels(tr, x, 1 if x.ndim == 4 else _NONE, out.ndim, "unfold", carry))


@rule("col2im")
def col2im(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Kernel-many consecutive rows become a channel: they go together."""
    x = args[0]
    carry = partial(as_one, tr, x.shape[-2] // out.shape[-3])
    tr.set_shadow(out, of_channels(tr, x, 1 if x.ndim == 3 else _NONE, out.ndim, "fold", carry))


@rule("unfold")
def windows(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Windows along an axis become an axis of their own, behind the others."""
    x = args[0]
    d = positive_dim(args[1], x.ndim)
    shadow = tr.outside(tr.shadow_of(x), (d,), "unfold takes channels by their position")
    tr.set_shadow(out, tuple(layer[..., None] for layer in shadow))


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Values go back to where a pool found them; its positions are of the same channels."""
    x, positions = args[0], range(args[0].ndim - int(func.overloadpacket.__name__[-2]), args[0].ndim)
    tr.set_shadow(out, tr.outside(join_operands(tr, args[:2], x.shape), positions, "max_unpool works on positions"))
