"""The tracer: channel ids of the tensors in one forward, and the methods with which rules combine them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from slim.channels.branches import Operation, operation_name
from slim.channels.ids import FIXED, IntArray, Shadow, axis_layer, compress, varying
from slim.channels.numbers import FILLS, as_number, value_of
from slim.channels.silence import is_silent
from slim.channels.trace_record import Axis, NormCall, Pieces, SizeUse, SplitView, TraceRecord

COMPUTED = "its weight is computed over several axes; slim.fold(model, inputs) makes it a plain one"
MIXED = "its weight is computed from more than parameters"
STANDARDIZED = "its weight is standardized over them; slim.fold(model, inputs) makes it a plain one"
_HAVE_CONSTANTS = ("batch_norm", "layer_norm", "group_norm", "rms_norm", "dropout", "bernoulli")
"""Parts of the names of operations whose numbers (eps, momentum, a rate) come from no width."""


def is_pointwise(func: Any) -> bool:
    """Whether PyTorch tags an operation so, or the one it does in place (``masked_fill_`` and others lack the tag)."""
    name = operation_name(func)
    if torch.Tag.pointwise in func.tags or not name.endswith("_"):
        return torch.Tag.pointwise in func.tags
    plain = getattr(getattr(torch.ops.aten, name[:-1], None), func._overloadname, None)
    return plain is not None and torch.Tag.pointwise in plain.tags


class Tracer:
    """Fills a :class:`TraceRecord` while a forward runs (see :mod:`slim.channels.dispatch`).

    Args:
        model: The traced network.
        residual: How shared streams are treated; see :func:`slim.trace`.
        grouped: How grouped convolutions are treated; see :func:`slim.trace`.
        record: What the trace fills.
        probing: Only compare with ids that are known already (see :mod:`slim.channels.width_probe`).
    """

    def __init__(
        self, model: nn.Module, *, residual: str, grouped: str, record: TraceRecord, probing: bool = False
    ) -> None:
        self.record, self.ids, self.probing = record, record.ids, probing
        self.model, self.residual, self.grouped = model, residual, grouped
        self.names = {id(m): n for n, m in model.named_modules()}
        self.modules = dict(model.named_modules())
        self.stack: list[nn.Module] = []
        self.failed = ""
        self.scalars: list[tuple[float, Shadow]] = []
        self.conflicts: list[IntArray] = []
        self.first_conflict: tuple[int, tuple[str, ...]] | None = None  # (operation, modules) of the first of them
        self.steps = 0  # operations so far
        self.operations: list[Operation] = []
        self.results: dict[str, list[tuple[int, int]]] = {}
        self.returned: set[int] = set()
        self.operands: Any = None  # of the operation that failed
        self.failing: tuple[str, ...] = ()  # the modules in which it failed, innermost first
        self.free: npt.NDArray[np.bool_] = np.ones(1, dtype=bool)  # by root; set while probing
        self.operation = ""
        self.silence_known = True  # see ``silence``
        self.seen_norms: set[str] = set()
        self.selective_norms: dict[str, NormCall] = {}

    # --- shadows -------------------------------------------------------------------------------------------------

    def shadow_of(self, tensor: torch.Tensor) -> Shadow:
        """The shadow of a tensor; a parameter gets one layer per axis when somebody first looks."""
        shadow: Shadow | None = getattr(tensor, "_slim_ids", None)
        if shadow is not None:
            return shadow
        if not hasattr(tensor, "_slim_param"):
            return ()
        self.record.reached.add(tensor._slim_param)
        layers = []
        for d, n in enumerate(tensor.shape):
            if n > 1:
                ids = self.axis_ids(tensor, d)
                if ids is not None and len(ids) == n:
                    layers.append(axis_layer(ids, d, tensor.ndim))
        tensor._slim_ids = tuple(layers)  # type: ignore[attr-defined]
        return tuple(layers)

    def set_shadow(self, tensor: torch.Tensor, shadow: Shadow) -> None:
        """Attach a shadow to a result."""
        tensor._slim_ids = shadow  # type: ignore[attr-defined]

    def axis_ids(self, tensor: torch.Tensor, dim: int) -> IntArray | None:
        """The ids (n,) along one axis, or None where they vary along nothing or along more."""
        name: str | None = getattr(tensor, "_slim_param", None)
        if name is None:
            found = None
            for layer in self.shadow_of(tensor):
                if varying(layer) == (dim,):
                    found = layer.ravel()
                elif layer.shape[dim] > 1:
                    self.pin(layer, COMPUTED)
            return found
        self.record.reached.add(name)
        if tensor.shape[dim] <= 1:
            return None
        return self.param_axis(name, dim, tensor.shape[dim])

    def param_axis(self, name: str, dim: int, size: int) -> IntArray:
        self.record.reached.add(name)
        axis = Axis(name, dim)
        ids = self.record.axes.get(axis)
        if ids is None:
            ids = self.record.axes[axis] = self.ids.fresh(size)
        return ids

    # --- what rules call -----------------------------------------------------------------------------------------

    def location(self) -> str:
        """Name of the module whose forward is running, or ``forward``."""
        name = self.names.get(id(self.stack[-1]), type(self.stack[-1]).__name__) if self.stack else ""
        return name or "forward"

    def join(self, left: IntArray, right: IntArray) -> None:
        """These ids stay or go together."""
        if self.probing:
            left, right = np.broadcast_arrays(left, right)
            differ = self.ids.find(left.ravel()) != self.ids.find(right.ravel())
            if differ.any():
                self.conflict(left.ravel()[differ])
                self.conflict(right.ravel()[differ])
            return
        self.ids.join(left, right, f"meets fixed data in {self.operation} ({self.location()})")

    def pin(self, ids: IntArray, reason: str) -> None:
        """These ids cannot go."""
        if self.probing:
            self.conflict(ids.ravel())
            return
        self.ids.pin(ids, f"{reason} ({self.location()})")

    def conflict(self, ids: IntArray) -> None:
        """While probing: these ids do not meet as they did before."""
        roots = self.ids.find(ids)
        free = ids[self.free[np.where(roots < len(self.free), roots, FIXED)]]  # newer ids: reached by nothing before
        if free.size:
            self.conflicts.append(free)
            if self.first_conflict is None:
                self.first_conflict = self.steps, self.modules_running()

    def modules_running(self) -> tuple[str, ...]:
        """Names of the modules whose forward is running, innermost first."""
        return tuple(self.names[id(m)] for m in reversed(self.stack) if id(m) in self.names)

    def note_inputs(self, module: nn.Module, args: Any) -> None:
        """A module is called: note the ids along every axis of what it is given."""
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        layers: list[IntArray] = [layer.ravel() for t in tensors for layer in self.shadow_of(t)]
        self.record.inputs[self.names.get(id(module), "")] = layers

    def note_operation(self, args: Any, kwargs: Any, out: Any) -> None:
        """An operation has run: note what it read and in which modules."""
        parents: list[int] = []
        params: list[str] = []
        for a in (*args, *kwargs.values()):
            for t in a if isinstance(a, (list, tuple)) else (a,):
                if isinstance(t, torch.Tensor):
                    if hasattr(t, "_slim_operation"):
                        parents.append(t._slim_operation)
                    elif hasattr(t, "_slim_param"):
                        params.append(t._slim_param)
                    else:  # an input of the network, or made outside of any operation
                        t._slim_operation = len(self.operations)  # type: ignore[attr-defined]
                        parents.append(len(self.operations))
                        self.operations.append(Operation("input", (), (), (), tuple(t.shape)))
        results = out if isinstance(out, (list, tuple)) else (out,)
        shapes = [tuple(t.shape) for t in results if isinstance(t, torch.Tensor)] or [()]
        made = Operation(
            self.operation, tuple(parents), tuple(params), self.modules_running(), shapes[0], tuple(shapes[1:])
        )
        for t in results:
            if isinstance(t, torch.Tensor):
                t._slim_operation = len(self.operations)  # type: ignore[attr-defined]
        self.operations.append(made)

    def note_result(self, module: nn.Module, out: Any) -> None:
        """A module returns: note which operation made its result, and how many None follow."""
        first, rest = (out[0], out[1:]) if isinstance(out, (list, tuple)) and out else (out, ())
        plain = isinstance(first, torch.Tensor) and all(part is None for part in rest)
        made = getattr(first, "_slim_operation", -1) if plain else -1
        self.results.setdefault(self.names.get(id(module), ""), []).append((made, len(rest)))

    def tight(self, layer: IntArray) -> IntArray:
        """``layer`` without the axes along which its ids have been joined."""
        return compress(self.ids.find(layer)) if len(varying(layer)) > 1 else layer

    def keep_whole(self, layer: IntArray, axes: Sequence[int], reason: str) -> IntArray:
        """Nothing can go along ``axes``: what varies along others too goes in whole slices along those, or not at all.

        Returns:
            The layer, of size 1 along ``axes`` unless it is pinned.
        """
        layer = self.tight(layer)
        inside = [d for d in varying(layer) if d in axes]
        if not inside:
            return layer
        if len(inside) == len(varying(layer)):
            self.pin(layer, reason)
            return layer
        first = layer[tuple(slice(0, 1) if d in inside else slice(None) for d in range(layer.ndim))]
        self.join(layer, first)
        if not self.probing:
            self.record.assumptions.append((self.location(), layer.ravel()))
        return first

    def outside(self, shadow: Shadow, axes: Sequence[int], reason: str) -> Shadow:
        """What passes an operation along ``axes``: the layers that hold nothing there, once those are kept whole."""
        kept = [self.keep_whole(layer, axes, reason) for layer in shadow]
        return tuple(layer for layer in kept if not set(axes) & set(varying(layer)))

    def mark_positions(self, ids: IntArray) -> None:
        """These are positions (kernel taps, vocabulary rows), not channels."""
        if not self.probing:
            self.ids.pin(ids, "")

    def inexact(self, ids: IntArray, reason: str) -> None:
        """Removable, but the rest will not compute the same."""
        self.record.inexact.append((np.unique(ids), f"{reason} ({self.location()})"))

    def balance(self, blocks: IntArray, what: str) -> None:
        """Every row of ``blocks`` (blocks, n) must lose equally many."""
        if not self.probing:
            self.record.balance.append((f"{what} in {self.location()}", blocks))

    def assume(self, layer: IntArray, dim: int, stops: Sequence[int], what: str) -> None:
        """The axis is cut at ``stops``, which are shares of its width: every equal block keeps its share."""
        if self.probing or not stops:
            return
        unit = math.gcd(layer.shape[dim], *[int(s) for s in stops])
        if unit == 1 and varying(layer) == (dim,):
            return self.pin(layer, f"{what} takes single channels by their position")
        blocks = np.moveaxis(layer, dim, 0).reshape(layer.shape[dim] // unit, -1)
        self.record.balance.append((f"{what} in {self.location()}", blocks))
        self.record.assumptions.append((self.location(), blocks.ravel()))

    def assume_columns(self, table: IntArray, what: str) -> None:
        """An axis is seen as (outer, inner): only whole columns of ``table`` can go, if ``inner`` follows the width."""
        if self.probing:
            return
        self.join(table, table[:1])
        self.record.assumptions.append((self.location(), table.ravel()))

    def split_view(self, table: IntArray) -> None:
        """An axis is seen as several: whole slices of ``table`` (rest, outer, ..., inner) along one of them can go.

        Which one is decided after the trace, when all that the forward does with it is known.
        """
        self.record.split_views.append(SplitView(self.modules_running(), self.steps, table))
        if not self.probing:
            self.record.assumptions.append((self.location(), table.ravel()))

    def note_pieces(self, layers: Sequence[IntArray], dim: int) -> None:
        """An axis is cut into these: what a sum or a concatenation reads looks the same, wherever the cut is."""
        if all(varying(layer) in ((dim,), ()) for layer in layers):
            ids: list[IntArray] = [layer.ravel() for layer in layers]
            self.record.pieces.append(Pieces(self.modules_running(), self.steps, ids))

    def note_sizes(self, shadow: Shadow) -> None:
        """The forward gave an operation the sizes of these axes: numbers that may come from attributes of a module."""
        if not self.probing:
            names = self.modules_running()
            self.record.sizes += [SizeUse(names, layer, d) for layer in shadow for d in varying(layer)]

    def assume_ids(self, ids: IntArray) -> None:
        """Record that ``ids`` can be removed only if the forward follows its widths; the width probe decides."""
        if not self.probing:
            self.record.assumptions.append((self.location(), ids.ravel()))

    def sum_over(self, tensor: torch.Tensor, layer: IntArray, out: Any, what: str) -> None:
        """A whole axis of channels is added up: exact where what a mask takes adds nothing, and no number counts it."""
        self.record.raw_reads.append(layer.ravel())
        if not (self.silence_known and is_silent(tensor)):
            return self.inexact(layer, f"{what} reduces over channels")
        self.record.summed.append(layer.ravel())
        self.assume_ids(layer)
        if isinstance(out, torch.Tensor):
            out._slim_contracted = layer.ravel()  # type: ignore[attr-defined]

    def product_over(self, ids: IntArray, left: torch.Tensor, right: torch.Tensor) -> None:
        """Two factors are multiplied and added up over channels: a mask must make one of them zero there."""
        if self.probing or any(self._zero_where_masked(t) for t in (left, right)):
            return
        self.inexact(ids, "a product of factors that are not zero where they are masked")

    def _zero_where_masked(self, tensor: torch.Tensor) -> bool:
        """An operation in place on activations changes no weight, however that is computed."""
        return is_silent(tensor) and (self.silence_known or self.is_weight(tensor))

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a parameter or a buffer itself."""
        return hasattr(tensor, "_slim_param")

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a parameter, or computed from parameters alone."""
        return hasattr(tensor, "_slim_param") or hasattr(tensor, "_slim_computed")

    def unknown(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operation we have no rule for: it pins what it touches, and is named."""
        op = operation_name(func)
        self.record.unknown.setdefault(op, self.location())
        tensors: list[torch.Tensor] = []
        tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
        reason = COMPUTED if all(map(self.is_weight, tensors)) else f"no rule for {op}"
        for t in tensors:
            for layer in self.shadow_of(t):
                self.pin(layer, reason)

    def name_of(self, tensor: Any) -> str | None:
        """The parameter or buffer a tensor is, by name."""
        return getattr(tensor, "_slim_param", None) if isinstance(tensor, torch.Tensor) else None

    def own_weight(self, computed: torch.Tensor) -> str | None:
        """Name of the weight of the module that is running, if ``computed`` is computed from parameters and like it."""
        mine = self.stack[-1]._parameters.get("weight") if self.stack else None
        like = mine is not None and mine.shape == computed.shape and self.is_weight(computed)
        return self.name_of(mine) if like else None

    def note_scalars(self, func: Any, args: Any, kwargs: Any) -> None:
        """Record numbers that may come from a width (1/C, sqrt(C)): the width probe checks whether they change."""
        name = operation_name(func)
        if any(part in name for part in _HAVE_CONSTANTS):
            return
        whole = is_pointwise(func) or name in FILLS  # whole numbers of others are sizes and axes
        given = (*args, *kwargs.values())
        values = [float(a) for a in given if type(a) is float or (whole and type(a) is int)]
        flat = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,))]
        tensors = [a for a in flat if isinstance(a, torch.Tensor)]
        moved = name in ("cat", "copy_", "copy")  # whole numbers in tensors of others say where something is
        known = [value_of(a) if whole or moved or a.is_floating_point() else None for a in tensors]
        values += [as_number(value) for value in known if value is not None]
        if not values:
            return
        layers: Shadow = ()
        for a in (a for a, value in zip(tensors, known, strict=True) if value is None):
            if "conv" in name and self.name_of(a):
                continue  # its axes are the rule's to name: one is stored per group, others are taps
            contracted = getattr(a, "_slim_contracted", None)
            # q k^T scaled by a function of the width it was summed over
            layers = (*layers, *self.shadow_of(a), *((contracted,) if contracted is not None else ()))
        self.scalars += [(value, layers) for value in values]
