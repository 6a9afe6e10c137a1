"""Windows over positions: cut out, added back, and undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim.channels.ids import alive, axis_layer, varying
from slim.channels.rules.elementwise import join_operands
from slim.channels.rules.registry import positive_dim, rule
from slim.channels.tracer import Tracer


@rule("im2col", "unfold_im2col")
def im2col(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A channel becomes kernel-many consecutive rows."""
    x = args[0]
    layers = []
    for layer in tr.shadow_of(x):
        if varying(layer) == (1,) and x.ndim == 4:
            layers.append(axis_layer(np.repeat(layer.ravel(), out.shape[1] // x.shape[1]), 1, 3))
        else:
            tr.pin(layer, "unfold over an axis that is not the channels'")
    tr.set_shadow(out, alive(layers))


@rule("col2im")
def col2im(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Kernel-many consecutive rows become a channel: they go together."""
    x = args[0]
    layers = []
    for layer in tr.shadow_of(x):
        if varying(layer) == (1,) and x.ndim == 3:
            rows = layer.reshape(out.shape[1], -1)
            tr.join(rows, rows[:, :1])
            layers.append(axis_layer(rows[:, 0], 1, 4))
        else:
            tr.pin(layer, "fold over an axis that is not the channels'")
    tr.set_shadow(out, alive(layers))


@rule("unfold")
def windows(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Windows along an axis become an axis of their own, behind the others."""
    x = args[0]
    d = positive_dim(args[1], x.ndim)
    shadow = [tr.keep_whole(layer, (d,), "unfold takes channels by their position") for layer in tr.shadow_of(x)]
    tr.set_shadow(out, tuple(layer[..., None] for layer in shadow if layer.shape[d] == 1))


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(tr: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Values go back to where a pool found them; its positions are of the same channels."""
    x, positions = args[0], range(args[0].ndim - int(func.overloadpacket.__name__[-2]), args[0].ndim)
    shadow = [
        tr.keep_whole(y, positions, "max_unpool works on positions") for y in join_operands(tr, args[:2], x.shape)
    ]
    tr.set_shadow(out, tuple(layer for layer in shadow if not set(positions) & set(varying(layer))))
