"""The width probe: does the forward follow its widths, or does it hard-code them?

A view that splits an axis, a chunk or a slice looks the same in one trace whether its numbers come from ``x.shape`` or
stand in the source. So trace a second network in which every removable channel is doubled in place (on meta tensors, no
arithmetic). If the forward follows its widths, ids meet exactly as before; where it does not, what was assumed is
pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from slim.channels.constraints import pinned_ids, propagate_balance_pins
from slim.channels.dispatch import run_forward
from slim.channels.duplicate import duplicate
from slim.channels.ids import IntArray
from slim.channels.surgery import set_attributes
from slim.channels.trace_record import Axis, TraceRecord
from slim.channels.tracer import Tracer


def probe_widths(
    model: nn.Module,
    example_inputs: Any,
    record: TraceRecord,
    *,
    residual: str,
    grouped: str,
) -> None:
    """Decide every assumption of ``record``: confirmed, or its ids are pinned."""
    for attempt in range(6):
        free = ~pinned_ids(record)
        open_ = [(where, ids) for where, ids in record.assumptions if free[record.ids.find(ids)].any()]
        if not open_ or record.real:
            _pin(record, open_, "the forward cannot be probed on meta tensors")
            propagate_balance_pins(record)
            return
        wide, wide_record = _widen(model, record, free)
        tracer = Tracer(wide, residual=residual, grouped=grouped, record=wide_record, probing=True)
        blamed = open_
        try:
            run_forward(tracer, example_inputs, meta=True)
        except Exception:
            if attempt < 4:
                blamed = [(w, ids) for w, ids in open_ if w == tracer.failed] or open_
        else:
            conflicts = [c[free[record.ids.find(c)]] for c in tracer.conflicts if c.size]
            conflicts += _scalar_conflicts(record, tracer)
            conflicts = [c for c in conflicts if c.size]
            if not conflicts:
                return
            blamed = [("", c) for c in conflicts]
        _pin(record, blamed, "the forward fixes the width or the position of its channels")
        propagate_balance_pins(record)


def _pin(record: TraceRecord, what: list[tuple[str, IntArray]], reason: str) -> None:
    for where, ids in what:
        record.ids.pin(ids.ravel(), f"{reason} ({where})" if where else reason)


def _scalar_conflicts(record: TraceRecord, tracer: Tracer) -> list[IntArray]:
    """Numbers that changed with the widths (a scale by 1/sqrt(C)): what they multiply must keep its width."""
    if len(record.scalars) != len(tracer.scalars):
        return []
    return [
        layer.ravel()
        for (before, layers), (after, _) in zip(record.scalars, tracer.scalars, strict=True)
        if before != after
        for layer in layers
    ]


def _widen(model: nn.Module, record: TraceRecord, free: Any) -> tuple[nn.Module, TraceRecord]:
    """A copy of the modules around meta parameters in which every free id stands twice."""
    ids = record.ids
    fixed = np.concatenate(
        [r.ravel() for _, read, own in record.selects for r in (read, own)] or [np.zeros(0, np.int64)]
    )
    held = np.zeros(len(ids), dtype=bool)
    held[ids.find(fixed)] = True
    repeats = {axis: 1 + (free & ~held)[ids.find(a)].astype(np.int64) for axis, a in record.axes.items()}
    wide = TraceRecord(
        ids,
        axes={axis: np.repeat(a, repeats[axis]) for axis, a in record.axes.items()},
        grouped=dict(record.grouped),
        regroup=dict(record.regroup),
        selects=record.selects,
        inexact=[],
    )
    memo, changed = _wide_tensors(model, record, repeats)
    twin = duplicate(model, memo)
    modules: dict[str, Any] = dict(twin.named_modules())
    for module, axis in record.regroup.items():
        if axis.dim == -1 or axis not in wide.axes:
            continue
        reads = wide.axes.get(Axis(axis.param, 1)) if axis.param in record.grouped else None
        count = len(reads) if reads is not None else len(wide.axes[axis])
        if hasattr(modules[module], "num_groups"):
            modules[module].num_groups = count
        else:
            modules[module].groups = count
        changed.add(module)
    for name in changed:
        if name in modules:
            set_attributes(modules[name])
    return twin, wide


def _wide_tensors(
    model: nn.Module, record: TraceRecord, repeats: Mapping[Axis, IntArray]
) -> tuple[dict[int, Any], set[str]]:
    """(id of a tensor -> its wider meta twin, names of modules whose shapes changed); integer buffers are copied."""
    memo: dict[int, Any] = {}
    changed: set[str] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            if not tensor.is_meta and id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            continue
        owner, shape = name.rpartition(".")[0], list(tensor.shape)
        for d in range(len(shape)):
            times = repeats.get(Axis(name, d))
            if times is not None and times.max() > 1:
                per = record.grouped.get(name, 1) if d == 1 else 1
                if per == 1 or owner not in record.regroup:
                    shape[d] = int(times.sum()) // per
                changed.add(owner)
        new = torch.empty(shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
    return memo, changed
