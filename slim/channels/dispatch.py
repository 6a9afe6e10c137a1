"""Run a forward with the tracer: every operation is dispatched to meta tensors, then its rule carries the channel ids.

Weights are neither copied nor computed with: every parameter is replaced by a meta tensor while the forward runs. Real
tensors are used only when an operation has no meta kernel, or the forward asks for values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slim.channels.branches import operation_name
from slim.channels.ids import Ids
from slim.channels.meta_forward import (
    asks_for_mode,
    call_arguments,
    call_on_meta,
    meta_like,
    module_stack,
    move_to_meta,
    temporary_state,
    tensors_in,
)
from slim.channels.numbers import FILLS, MAKERS, note_made, note_value, value_of
from slim.channels.rules import find_rule
from slim.channels.silence import note_silence
from slim.channels.trace_record import TraceRecord
from slim.channels.tracer import Tracer
from slim.errors import SlimError

_KEEPS_CONTRACTION = {"view", "_unsafe_view", "reshape", "transpose", "permute", "expand", "clone", "add"}
"""Operations after which a tensor still counts as the product it came from."""

_DROPS_CHANNELS = {F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout}
"""Their noise (N, C, 1, ...) is as wide as their input, but made without it: as operations, foreign data."""


_LEAVES = {torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__}
"""What becomes of their results nobody sees."""


def _padded_around(x: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """``F.pad``, where ``circular`` joins pieces: as operations, it writes them into foreign data."""
    if mode != "circular" or any(n < 0 for n in pad):
        return F.pad(x, pad, mode, value)
    for place, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        size = x.shape[-place]
        x = torch.cat([x.narrow(-place, size - before, before), x, x.narrow(-place, 0, after)], -place)
    return x


class TracingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operation, on meta tensors if ``meta``, and applies its rule to ``tracer``."""

    def __init__(self, tracer: Tracer, *, meta: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer, self.meta = tracer, meta

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tracer = kwargs or {}, self.tracer
        if torch.is_inference_mode_enabled():  # there operations arrive whole, not as the ones that have rules
            with torch.inference_mode(False), torch.no_grad(), self:
                return func(*args, **kwargs)
        tracer.operation = operation_name(func)
        tracer.steps += 1
        before = _unviewed(func, args)
        out = self._execute(func, args, kwargs)
        tracer.note_operation(args, kwargs, out)
        note_value(func, args, kwargs, out)
        carries = _carries_ids(args, kwargs)
        if carries or tracer.operation in FILLS:
            tracer.note_scalars(func, args, kwargs)
        if not carries:
            return out
        apply = find_rule(func)
        if apply is None:
            tracer.unknown(func, args, kwargs)
        else:
            apply(tracer, func, before, kwargs, out)
        if _from_parameters(args):
            for t in out if isinstance(out, (list, tuple)) else (out,):
                if isinstance(t, torch.Tensor):
                    t._slim_computed = True  # type: ignore[attr-defined]
        if not note_silence(tracer.operation, args, out):
            tracer.silence_known = False
        contracted = next((c for a in args if (c := getattr(a, "_slim_contracted", None)) is not None), None)
        if contracted is not None and isinstance(out, torch.Tensor) and tracer.operation in _KEEPS_CONTRACTION:
            out._slim_contracted = contracted  # type: ignore[attr-defined]
        return out

    def _execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not self.meta:
            return func(*args, **kwargs)
        meta_args, meta_kwargs = move_to_meta(args, kwargs)
        out = call_on_meta(func, meta_args, meta_kwargs)
        if meta_args is not args and isinstance(out, torch.Tensor) and out is not args[0]:
            for before, after in zip(args, meta_args, strict=False):
                if out is after:  # an in-place operation on a tensor that was moved to meta for it
                    out = before
        return out


def _unviewed(func: Any, args: Any) -> Any:
    """The arguments as they are now, where the operation gives its first one another shape (``squeeze_``)."""
    if torch.Tag.inplace_view not in func.tags:
        return args
    first = args[0].alias() if hasattr(args[0], "alias") else args[0].view(args[0].shape)
    vars(first).update(vars(args[0]))
    return (first, *args[1:])


class _Watch(TorchFunctionMode):
    """Notes numbers that become tensors, and the arguments of the innermost function that raises; drops no channels.

    A view may fail, and a tensor be made of a number, before they become an operation.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DROPS_CHANNELS:
            kwargs = {**(kwargs or {}), "training": False}
        if func is F.pad:
            func = _padded_around
        if func in _LEAVES:
            for layer in self.tracer.shadow_of(args[0]):
                self.tracer.pin(layer, f"{func.__name__} takes it out of PyTorch")
        try:
            out = func(*args, **(kwargs or {}))
            if func in MAKERS:
                note_made(func, args, out)
            return out
        except Exception:
            if self.tracer.operands is None:
                self.tracer.operands = (args, kwargs)
                self.tracer.failing = self.tracer.modules_running()
            raise


def _from_parameters(args: Any) -> bool:
    """Whether all tensors among the arguments are parameters, computed from parameters alone, or numbers."""
    return all(
        hasattr(a, "_slim_param") or hasattr(a, "_slim_computed") or (a.numel() == 1 and value_of(a) is not None)
        for a in args
        if isinstance(a, torch.Tensor)
    ) and not any(isinstance(a, (list, tuple)) and any(isinstance(t, torch.Tensor) for t in a) for a in args)


def _carries_ids(args: Any, kwargs: Any) -> bool:
    """Whether any tensor among the arguments has a shadow or is a parameter."""
    for a in (*args, *kwargs.values()):
        if isinstance(a, torch.Tensor):
            if hasattr(a, "_slim_ids") or hasattr(a, "_slim_param"):
                return True
        elif isinstance(a, (list, tuple)) and any(
            isinstance(t, torch.Tensor) and (hasattr(t, "_slim_ids") or hasattr(t, "_slim_param")) for t in a
        ):
            return True
    return False


def run_forward(tracer: Tracer, example_inputs: Any, *, meta: bool, training: bool = False) -> None:
    """One forward of ``tracer.model`` under the tracer.

    Raises:
        Exception: whatever the forward raised; ``tracer.failed`` then names the module.
    """
    failed: list[nn.Module] = []

    def example_tensor(t: torch.Tensor) -> torch.Tensor:
        other = meta_like(t) if meta else t.detach().clone()
        if training and other.ndim and other.shape[0] == 1:
            other = torch.cat([other, other])  # batch statistics need more than one sample
        return other

    args, kwargs = call_arguments(example_inputs)
    with torch.no_grad():
        args, kwargs = tree_map_only(torch.Tensor, example_tensor, (args, kwargs))
        with temporary_state(tracer.model, meta=meta, training=training):
            try:
                with (
                    module_stack(tracer.stack, failed, tracer.note_inputs, tracer.note_result),
                    _Watch(tracer),
                    TracingMode(tracer, meta=meta),
                ):
                    out = tracer.model(*args, **kwargs)
                    if isinstance(out, Iterator):  # a generator makes its parts as they are asked for
                        out = list(out)
            except Exception:
                tracer.failed = tracer.names.get(id(failed[-1]), "") if failed else ""
                raise
            for tensor in tensors_in(out):
                tracer.returned.add(getattr(tensor, "_slim_operation", 0))
                for layer in tracer.shadow_of(tensor):
                    tracer.record.outputs.append(layer.ravel())
                    if not tracer.probing:
                        tracer.ids.pin(layer, "is the model's output")


def record_trace(model: nn.Module, example_inputs: Any, *, residual: str, grouped: str) -> TraceRecord:
    """Trace a network: an eval forward, and a train forward where that is another (auxiliary heads, features)."""
    record = TraceRecord(Ids())
    tracer = Tracer(model, residual=residual, grouped=grouped, record=record)
    real_inputs = all(not t.is_meta for t in tensors_in(call_arguments(example_inputs)))
    real_model = all(not p.is_meta for p in model.parameters())
    try:
        run_forward(tracer, example_inputs, meta=True)
    except Exception as error:
        op, where = tracer.operation, tracer.failed or "forward"
        if not (real_inputs and real_model):
            raise SlimError(
                f"The forward must run on example_inputs; on meta tensors it failed. "
                f"Got {type(error).__name__}: {error} (op {op}, module {where}). "
                "Pass real example_inputs if it needs values; check their shape and dtype."
            ) from error
        record = TraceRecord(Ids(), real=True)
        tracer = Tracer(model, residual=residual, grouped=grouped, record=record)
        try:
            run_forward(tracer, example_inputs, meta=False)
        except Exception as second:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in tensors_in(call_arguments(example_inputs))]
            raise SlimError(
                f"The forward must run on example_inputs. Got {type(second).__name__}: {second} "
                f"(op {tracer.operation}, module {tracer.failed or 'forward'}, inputs {', '.join(shapes)}). "
                "Check their shape and dtype."
            ) from second
    record.scalars = tracer.scalars
    record.operations, record.results, record.returned = tracer.operations, tracer.results, tracer.returned
    unreached = any(name not in record.reached and p.numel() > 1 for name, p in model.named_parameters())
    if unreached or asks_for_mode(model):
        again = Tracer(model, residual=residual, grouped=grouped, record=record)
        again.seen_norms, again.selective_norms = tracer.seen_norms, tracer.selective_norms
        contractions, selects = len(record.contractions), len(record.selects)
        with suppress(Exception):  # what only an unreachable forward uses stays unreached; the report says so
            run_forward(again, example_inputs, meta=not record.real, training=True)
        del record.contractions[contractions:], record.selects[selects:]  # counted once, as an eval forward
    return record
