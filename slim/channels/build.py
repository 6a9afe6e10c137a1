"""From a trace to the channel graph: apply constraints, check assumptions, number the groups, name the spaces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from slim.channels.check import input_spec
from slim.channels.constraints import (
    pin_fixed_axes,
    propagate_balance_pins,
    resolve_shared_streams,
    resolve_split_views,
)
from slim.channels.dispatch import record_trace
from slim.channels.graph import ChannelGraph
from slim.channels.group_numbers import BoolArray, GroupNumbers
from slim.channels.ids import IntArray, compress, varying
from slim.channels.meta_forward import call_arguments, tensors_in, unwrap
from slim.channels.structure import Balance, Layer, Scale, Space
from slim.channels.trace_record import Axis, Contraction, TraceRecord
from slim.channels.width_probe import probe_widths
from slim.errors import SlimError

RESIDUAL = ("group", "select", "keep")
GROUPED = ("balance", "whole")
GroupsOf = Callable[[IntArray], IntArray]
"""From ids to group numbers, -1 where an id is no channel."""


@torch.inference_mode(False)  # there operations arrive whole, not as the ones that have rules
def trace(model: nn.Module, example_inputs: Any, *, residual: str = "group", grouped: str = "balance") -> ChannelGraph:
    """Find which channels of any network belong together, by running it once on meta tensors.

    Args:
        model: Any module. It is not changed: not its weights, mode, gradients, buffers or random state.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments, on any device, meta included.
        residual: How streams that several layers share are treated. ``group``: their channels go together everywhere;
            ``select``: a normalization that reads a stream drops channels of its own, behind an index layer (the
            channel selection of Liu et al. 2017, section 3.4); ``keep``: they stay whole.
        grouped: Grouped convolutions lose equally many channels in each group (``balance``) or ``whole`` groups.

    Raises:
        SlimError: when the forward does not run on the example, or an option is unknown.
    """
    for name, value, known in (("residual", residual, RESIDUAL), ("grouped", grouped, GROUPED)):
        if value not in known:
            raise SlimError(f"{name} must be one of {', '.join(known)}. Got {name}={value!r}. Choose one of them.")
    model = unwrap(model)
    _check_tensors(model)
    record = record_trace(model, example_inputs, residual=residual, grouped=grouped)
    resolve_split_views(record)
    resolve_shared_streams(record, model, residual)
    pin_fixed_axes(record, model)
    propagate_balance_pins(record)
    probe_widths(model, example_inputs, record, residual=residual, grouped=grouped)
    return _assemble(model, example_inputs, record)


def _check_tensors(model: nn.Module) -> None:
    """Raise where nobody can cut the weights: in compiled code, in tensors of a class of their own, or not made yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise SlimError(
                f"A network must have its weights. Got {name}, which a lazy module makes when it first runs. "
                "Run the network once before."
            )
        if is_traceable_wrapper_subclass(tensor):  # it need not be able to do what a cut does
            raise SlimError(
                f"Weights must be plain tensors. Got {name} ({type(tensor).__name__}). "
                "Prune the network before it is quantized or sharded."
            )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in (*module.parameters(), *module.buffers())):
            raise SlimError(
                f"A network must be made of Python's modules. Got a ScriptModule ({name or type(module).__name__}). "
                "Prune the network first, and script the thin one."
            )


def _assemble(model: nn.Module, example_inputs: Any, record: TraceRecord) -> ChannelGraph:
    numbers = GroupNumbers(record)
    axes = numbers.axes(record)
    pinned, inexact, reasons = numbers.pinned(record)
    spaces, space_of = _spaces(record, numbers.groups, axes, numbers.count)
    implied, selects = _selections(record, numbers.groups)
    _pin_streams(implied, pinned, inexact, reasons)
    tensors = list(tensors_in(call_arguments(example_inputs)))
    return ChannelGraph(
        model=model,
        count=numbers.count,
        axes=axes,
        grouped=record.grouped,
        regroup=record.regroup,
        settings={key: numbers.groups(ids) for key, ids in record.settings.items()},
        prunable=~pinned & ~inexact,
        inexact=inexact,
        reasons=reasons,
        scales=_scales(model, record, numbers.groups, axes),
        spaces=spaces,
        space_of=space_of,
        balance=_balances(record, numbers.groups),
        implied=implied,
        layers=[_layer(work, numbers.groups) for work in record.contractions],
        selects=selects,
        unknown=record.unknown,
        unreached=[n for n, p in model.named_parameters() if n not in record.reached and p.numel() > 1],
        operations=record.operations,
        results=record.results,
        returned=record.returned,
        inputs=None if record.real else input_spec(example_inputs),
        input_shapes=", ".join("x".join(map(str, t.shape)) for t in tensors),
    )


def _pin_streams(implied: IntArray, pinned: BoolArray, inexact: BoolArray, reasons: dict[int, str]) -> None:
    """Pin every stream group that a pinned or inexact reader needs; changes ``pinned`` and ``reasons``."""
    while len(implied):  # a reader may be a stream for others
        held = np.unique(implied[(pinned | inexact)[implied[:, 1]] & ~pinned[implied[:, 0]], 0])
        if not len(held):
            break
        pinned[held] = True
        reasons.update(dict.fromkeys(held.tolist(), "a layer that reads this stream keeps the channel"))


def _layer(work: Contraction, groups: GroupsOf) -> Layer:
    """A contraction of the record, in groups."""
    terms = {i: (groups(t.ids), t.per) for i, t in enumerate(work.terms)}
    factor = work.factor
    nested: dict[int, list[IntArray]] = {}
    for ids in work.nest:
        found = _single_axis(ids, groups)
        if found is not None:
            nested.setdefault(found[0], []).append(found[1])
    for mine in nested.values():
        factor //= len(mine[0])
    activations: list[tuple[int, IntArray | None]] = []
    for elements, layer in work.activations:
        found = _single_axis(layer, groups) if layer is not None else None
        activations.append((elements // len(found[1]), found[1]) if found is not None else (elements, None))
    return Layer(
        work.module,
        work.kind,
        work.weight,
        factor,
        (*terms.values(), *((each, 1) for mine in nested.values() for each in _factors(mine))),
        tuple(activations),
    )


def _factors(layers: list[IntArray]) -> list[IntArray]:
    """The groups (n,) of one axis, so that what stays of each multiplies to what stays of it: it may be two, merged."""
    alone = [np.unique(layer) for layer in layers]
    together = np.unique(np.stack(layers), axis=1).shape[1]  # both operands may carry the same heads
    return alone if together == len(layers[0]) == math.prod(map(len, alone)) else layers[:1]


def _single_axis(layer: IntArray, groups: GroupsOf) -> tuple[int, IntArray] | None:
    """The axis of a layer, and the groups along it (n,); None where they vary along no axis or more.

    A layer of one axis is taken as it is, varying or not.
    """
    mine = groups(layer).reshape(layer.shape)
    if len(varying(mine)) > 1:
        mine = compress(mine)
    axes = varying(mine)
    return (axes[0], mine.ravel()) if len(axes) == 1 else None


def _scales(model: nn.Module, record: TraceRecord, groups: GroupsOf, axes: Mapping[Axis, IntArray]) -> list[Scale]:
    """The scales of all normalization layers."""
    scales = [Scale(n.module, n.weight, n.bias, n.mean, n.var, groups(n.own), n.kind) for n in record.norms]
    return scales + _frozen_norms(model, axes, {n.module for n in record.norms})


def _spaces(
    record: TraceRecord, groups: GroupsOf, axes: Mapping[Axis, IntArray], count: int
) -> tuple[list[Space], IntArray]:
    """Partition the groups by the set of layers that make them."""
    label = np.zeros(count, dtype=np.int64)
    fresh = 1
    makers: list[tuple[str, bool, IntArray]] = []

    def mark(name: str, mine: IntArray, makes: bool = True) -> None:
        nonlocal fresh
        mine = mine[mine >= 0]
        if not len(mine):
            return
        if not (mine[1:] > mine[:-1]).all():
            mine = np.unique(mine)
        makers.append((name, makes, mine))
        values, inverse = np.unique(label[mine], return_inverse=True)
        label[mine] = fresh + inverse
        fresh += len(values)

    for module, array in record.producers:
        mark(module, groups(array))
    for note in record.norms:
        if note.selective:
            mark(note.module, groups(note.own))
    for axis, mine in axes.items():
        alone = mine[mine >= 0]
        if len(alone) and (label[alone] == 0).any():
            mark(f"{axis.param.rpartition('.')[0]} (fixed)", alone[label[alone] == 0], makes=False)

    values, first, space_of = np.unique(label, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    space_of = rank[space_of].astype(np.int64)
    titles: list[str] = [""] * len(values)
    members: list[list[str]] = [[] for _ in values]
    for name, makes, mine in makers:
        for s in np.unique(space_of[mine]).tolist():
            titles[s] = titles[s] or name
            if makes and name not in members[s]:
                members[s].append(name)
    order = np.argsort(space_of, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(space_of, minlength=len(values)))[:-1]) if count else []
    seen: Counter[str] = Counter()
    spaces = []
    for s, part in enumerate(parts):
        name = titles[s]
        seen[name] += 1
        title = name if seen[name] == 1 else f"{name}#{seen[name]}"
        spaces.append(Space(title, tuple(members[s]), part.astype(np.int64)))
    return spaces, space_of


def _frozen_norms(model: nn.Module, axes: Mapping[Axis, IntArray], known: set[str]) -> list[Scale]:
    """Normalizations written out in a forward (FrozenBatchNorm2d): a weight beside running statistics."""
    found = []
    for name, module in model.named_modules():
        if name in known or not (hasattr(module, "running_var") and hasattr(module, "weight")):
            continue
        mine = axes.get(Axis(f"{name}.weight", 0))
        if mine is not None:
            weight, bias, mean, var = (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
            found.append(Scale(name, weight, bias, mean, var, mine))
    return found


def _balances(record: TraceRecord, groups: GroupsOf) -> list[Balance]:
    """The balance constraints that are not satisfied by themselves, each once."""
    found: dict[tuple[tuple[int, ...], bytes], Balance] = {}
    for where, array in record.balance:
        blocks = groups(array).reshape(array.shape)
        ordered = np.sort(blocks, axis=1)
        if (ordered == ordered[:1]).all() or (blocks < 0).all():
            continue
        found.setdefault((blocks.shape, blocks.tobytes()), Balance(where, tuple(blocks)))
    return list(found.values())


def _selections(record: TraceRecord, groups: GroupsOf) -> tuple[IntArray, list[tuple[str, IntArray]]]:
    """Pairs (stream group, reader group), and the stream that each selecting normalization reads."""
    pairs, selects = [], []
    for note in record.norms:
        if note.selective and note.read is not None:
            pairs.append(np.stack([groups(note.read), groups(note.own)], axis=1))
            selects.append((note.module, groups(note.read)))
    for name, read, own in record.selects:
        if own is not read:
            pairs.append(np.stack([groups(read), groups(own)], axis=1))
        selects.append((name.rpartition(".")[0], groups(record.streams[name])))
    merged = np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)
    return merged[(merged >= 0).all(axis=1)], selects
