"""Trace by running: one forward under a dispatch mode, on meta tensors, with channel ids riding along.

The weights are neither copied nor computed with: every parameter is replaced by a meta tensor for the length of the
forward, and put back. Only when an operation has no meta kernel, or the forward asks for values, real tensors are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slim.channels.ids import Ids, IntArray, Shadow, axis_layer, varying
from slim.channels.meta_forward import (
    call_arguments,
    call_on_meta,
    meta_like,
    module_stack,
    move_to_meta,
    temporary_state,
    tensors_in,
)
from slim.channels.rules import find_rule
from slim.channels.trace_record import Axis, NormCall, TraceRecord
from slim.errors import SlimError

_STILL_THE_PRODUCT = {"view", "_unsafe_view", "reshape", "transpose", "permute", "expand", "clone", "add"}


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward and fills a :class:`TraceRecord`; with ``probing`` it only compares (see ``width_probe``)."""

    def __init__(
        self, model: nn.Module, *, residual: str, grouped: str, record: TraceRecord, probing: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record, self.ids, self.probing = record, record.ids, probing
        self.model, self.residual, self.grouped = model, residual, grouped
        self.names = {id(m): n for n, m in model.named_modules()}
        self.modules = dict(model.named_modules())
        self.stack: list[nn.Module] = []
        self.failed = ""
        self.meta = True
        self.scalars: list[tuple[float, Shadow]] = []
        self.conflicts: list[IntArray] = []
        self.where = ""
        self.seen_norms: set[str] = set()
        self.selective_norms: dict[str, NormCall] = {}

    # --- the dispatch mode ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.meta:
            run_args, run_kwargs = move_to_meta(args, kwargs)
        else:
            run_args, run_kwargs = args, kwargs
        self.where = func.overloadpacket.__name__
        out = call_on_meta(func, run_args, run_kwargs) if self.meta else func(*run_args, **run_kwargs)
        if self.meta and run_args is not args and isinstance(out, torch.Tensor) and out is not args[0]:
            for before, after in zip(args, run_args, strict=False):
                if out is after:  # an in-place operation on a tensor that was moved to meta for it
                    out = before
        if not self._touched(args, kwargs):
            return out
        self._note_scalars(func, args)
        apply = find_rule(func)
        if apply is None:
            self.unknown(func, args, kwargs)
        else:
            apply(self, func, args, kwargs, out)
        contracted = getattr(args[0], "_slim_contracted", None) if args else None
        if contracted is not None and isinstance(out, torch.Tensor) and self.where in _STILL_THE_PRODUCT:
            out._slim_contracted = contracted  # type: ignore[attr-defined]
        return out

    def _note_scalars(self, func: Any, args: Any) -> None:
        """A number that looks computed from a width (1/C, sqrt(C)) would change with it: the probe has to tell."""
        values = [float(a) for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        if not values or torch.Tag.pointwise not in func.tags or not isinstance(args[0], torch.Tensor):
            return
        layers = self.shadow_of(args[0])
        contracted = getattr(args[0], "_slim_contracted", None)
        if contracted is not None:  # q k^T scaled by a function of the width it was summed over
            layers = (*layers, contracted)
        self.scalars += [(value, layers) for value in values]
        for layer in layers:
            for n in (layer.shape[d] for d in varying(layer)):
                if any(math.isclose(abs(v), w, rel_tol=1e-9) for v in values for w in (n, 1 / n, n**0.5, n**-0.5)):
                    self.record.assumptions.append((self.location(), layer.ravel()))

    def _touched(self, args: Any, kwargs: Any) -> bool:
        for a in (*args, *kwargs.values()):
            if isinstance(a, torch.Tensor):
                if hasattr(a, "_slim_ids") or hasattr(a, "_slim_param"):
                    return True
            elif isinstance(a, (list, tuple)) and any(
                isinstance(t, torch.Tensor) and (hasattr(t, "_slim_ids") or hasattr(t, "_slim_param")) for t in a
            ):
                return True
        return False

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
                    self.pin(layer, "its weight is computed over several axes")
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
                self.conflicts += [left.ravel()[differ], right.ravel()[differ]]
            return
        self.ids.join(left, right, f"meets fixed data in {self.where} ({self.location()})")

    def pin(self, ids: IntArray, reason: str) -> None:
        """These ids cannot go."""
        if self.probing:
            self.conflicts.append(ids.ravel())
            return
        self.ids.pin(ids, f"{reason} ({self.location()})")

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

    def assume_position(self, layer: IntArray, dim: int, what: str) -> None:
        """One position is taken along an axis that is part of a wider split."""
        if varying(layer) == (dim,):
            self.pin(layer, f"{what} takes channels by their position")
        elif not self.probing:
            self.record.assumptions.append((self.location(), layer.ravel()))

    def assume_ids(self, ids: IntArray) -> None:
        """Record that ``ids`` can be removed only if the forward follows its widths; the width probe decides."""
        if not self.probing:
            self.record.assumptions.append((self.location(), ids.ravel()))

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is a parameter or a buffer itself."""
        return hasattr(tensor, "_slim_param")

    def unknown(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operation we have no rule for: it pins what it touches, and is named."""
        op = func.overloadpacket.__name__
        self.record.unknown.setdefault(op, self.location())
        tensors: list[torch.Tensor] = []
        tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
        for t in tensors:
            for layer in self.shadow_of(t):
                self.pin(layer, f"no rule for {op}")

    def name_of(self, tensor: Any) -> str | None:
        """The parameter or buffer a tensor is, by name."""
        return getattr(tensor, "_slim_param", None) if isinstance(tensor, torch.Tensor) else None


def run(tracer: Tracer, example_inputs: Any, *, meta: bool, training: bool = False) -> None:
    """One forward of ``tracer.model`` under the tracer.

    Raises:
        Exception: whatever the forward raised; ``tracer.failed`` then names the module.
    """
    tracer.meta = meta
    failed: list[nn.Module] = []

    def stand_in(t: torch.Tensor) -> torch.Tensor:
        other = meta_like(t) if meta else t.detach().clone()
        if training and other.ndim and other.shape[0] == 1:
            other = torch.cat([other, other])  # batch statistics need more than one sample
        return other

    args, kwargs = call_arguments(example_inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[], enabled=not meta):
        args, kwargs = tree_map_only(torch.Tensor, stand_in, (args, kwargs))
        with temporary_state(tracer.model, meta=meta, training=training):
            try:
                with module_stack(tracer.stack, failed), tracer:
                    out = tracer.model(*args, **kwargs)
            except Exception:
                tracer.failed = tracer.names.get(id(failed[-1]), "") if failed else ""
                raise
            for tensor in tensors_in(out):
                for layer in tracer.shadow_of(tensor):
                    tracer.record.outputs.append(layer.ravel())
                    if not tracer.probing:
                        tracer.ids.pin(layer, "is the model's output")


def collect(model: nn.Module, example_inputs: Any, *, residual: str, grouped: str) -> TraceRecord:
    """Trace a network: an eval forward, and a train forward for what only training reaches (auxiliary heads)."""
    record = TraceRecord(Ids())
    tracer = Tracer(model, residual=residual, grouped=grouped, record=record)
    real_inputs = all(not t.is_meta for t in tensors_in(call_arguments(example_inputs)))
    real_model = all(not p.is_meta for p in model.parameters())
    try:
        run(tracer, example_inputs, meta=True)
    except Exception as error:
        op, where = tracer.where, tracer.failed or "forward"
        if not (real_inputs and real_model):
            raise SlimError(
                f"The forward must run on example_inputs; on meta tensors it failed. "
                f"Got {type(error).__name__}: {error} (op {op}, module {where}). "
                "Pass real example_inputs if it needs values; check their shape and dtype."
            ) from error
        record = TraceRecord(Ids(), real=True)
        tracer = Tracer(model, residual=residual, grouped=grouped, record=record)
        try:
            run(tracer, example_inputs, meta=False)
        except Exception as second:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in tensors_in(call_arguments(example_inputs))]
            raise SlimError(
                f"The forward must run on example_inputs. Got {type(second).__name__}: {second} (op {tracer.where}, "
                f"module {tracer.failed or 'forward'}, inputs {', '.join(shapes)}). Check their shape and dtype."
            ) from second
    record.scalars = tracer.scalars
    if any(name not in record.reached and p.numel() > 1 for name, p in model.named_parameters()):
        again = Tracer(model, residual=residual, grouped=grouped, record=record)
        again.seen_norms, again.selective_norms = tracer.seen_norms, tracer.selective_norms
        contractions, selects = len(record.contractions), len(record.selects)
        with suppress(Exception):  # what only an unreachable forward uses stays unreached; the report says so
            run(again, example_inputs, meta=not record.real, training=True)
        del record.contractions[contractions:], record.selects[selects:]  # counted once, as an eval forward
    return record
