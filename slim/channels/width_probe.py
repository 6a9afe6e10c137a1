"""The width probe: does the forward follow its widths, or does it hard-code them?

A view that splits an axis, a chunk or a slice looks the same in one trace whether its numbers come from ``x.shape`` or
stand in the source. So trace a second network in which every removable channel stands several times in place (on meta
tensors, no arithmetic); how often depends on the layer that makes it, so that two layers of one width differ. If the
forward follows its widths, ids meet exactly as before. Where it does not, attributes of its modules are tried that hold
the number it used (:mod:`slim.channels.settings`); where none helps, what was assumed is pinned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from slim.channels.constraints import pinned_ids, propagate_balance_pins, resolve_split_views
from slim.channels.dispatch import run_forward
from slim.channels.duplicate import duplicate
from slim.channels.group_numbers import BoolArray
from slim.channels.ids import Ids, IntArray
from slim.channels.meta_forward import tensors_in
from slim.channels.settings import (
    Candidate,
    Outcome,
    Settings,
    is_of_torch,
    set_number,
    settings_that_help,
    widths_of,
)
from slim.channels.surgery import set_attributes
from slim.channels.trace_record import Axis, SizeUse, TraceRecord
from slim.channels.tracer import Tracer
from slim.channels.width_conflicts import (
    is_free,
    layers_as_wide_as,
    piece_conflicts,
    scalar_conflicts,
    shape_conflicts,
    size_conflict,
)

FIXES_WIDTH = "the forward fixes the width or the position of its channels"
COUNTS_WIDTH = "the forward computes with the number of its channels"
TURNS = (1, 2)  # other ways to widen, where layers are as wide as a number: together they tell 343 of them apart
ATTEMPTS = 40  # rounds over the assumptions of one network; each settles one place in the code of its modules


def probe_widths(
    model: nn.Module,
    example_inputs: Any,
    record: TraceRecord,
    *,
    residual: str,
    grouped: str,
) -> None:
    """Decide every assumption of ``record``: confirmed, made true by module attributes, or its ids are pinned."""
    options = {"residual": residual, "grouped": grouped}
    hopeless: set[tuple[Candidate, ...]] = set()
    scaled = any(abs(number) not in (0, 1, 2) for number, _ in record.scalars)  # no width is as small
    for attempt in range(ATTEMPTS):
        free = ~pinned_ids(record)
        open_ = [(where, ids) for where, ids in record.assumptions if is_free(record, free, ids).any()]
        if not (record.assumptions or scaled) or not free.any():
            return
        if record.real:
            _pin(record, open_, "the forward cannot be probed on meta tensors")
            propagate_balance_pins(record)
            return

        if untried := _untried(record, open_, free):
            _pin(record, untried, f"whether {FIXES_WIDTH} cannot be tried: its stream stays")
            propagate_balance_pins(record)
            continue

        def outcome_of(settings: Settings, free: BoolArray = free, turn: int = 0) -> Outcome:
            return _run(model, example_inputs, record, free, settings, options, turn)

        outcome = outcome_of(record.settings)
        if outcome.passed:
            return
        found = settings_that_help(model, record, outcome, outcome_of, hopeless)
        if found is not None:
            record.settings = found
            continue
        if _join_that_helps(model, record, outcome, outcome_of):
            continue
        outcome = _told_apart(record, outcome, outcome_of)
        last = attempt >= ATTEMPTS - 2
        reason = COUNTS_WIDTH if outcome.counted else FIXES_WIDTH
        _pin(record, open_ if last else _blamed(model, record, outcome, open_, free), reason)
        propagate_balance_pins(record)


def _untried(record: TraceRecord, open_: list[tuple[str, IntArray]], free: BoolArray) -> list[tuple[str, IntArray]]:
    """Assumptions on what a normalization selects of a stream that stays: it cannot be wider than that."""
    held = [own[is_free(record, free, own) & ~is_free(record, free, read)] for own, read in _selected(record)]
    if not held:
        return []
    roots = record.ids.find(np.concatenate(held))
    found = [(where, ids[np.isin(record.ids.find(ids), roots)]) for where, ids in open_]
    return [(where, ids) for where, ids in found if ids.size]


def _selected(record: TraceRecord) -> list[tuple[IntArray, IntArray]]:
    """Of every normalization that selects channels of a stream its own, and the stream's."""
    return [(note.own, note.read) for note in record.norms if note.selective and note.read is not None]


def _told_apart(record: TraceRecord, outcome: Outcome, outcome_of: Callable[..., Outcome]) -> Outcome:
    """``outcome`` without the layers that are as wide as a number by chance: widened otherwise they no longer are."""

    def layers(outcome: Outcome) -> dict[bytes, IntArray]:
        return {np.unique(record.ids.find(ids)).tobytes(): ids for ids in outcome.ids}

    for turn in TURNS:
        found = layers(outcome)
        if not outcome.by_width or len(found) < 2:
            break
        again = layers(outcome_of(record.settings, turn=turn))
        outcome = outcome._replace(ids=[found[key] for key in found if key in again] or outcome.ids)
    return outcome


def _pin(record: TraceRecord, what: list[tuple[str, IntArray]], reason: str) -> None:
    for where, ids in what:
        record.ids.pin(ids.ravel(), f"{reason} ({where})" if where else reason)


def _blamed(
    model: nn.Module, record: TraceRecord, outcome: Outcome, open_: list[tuple[str, IntArray]], free: BoolArray
) -> list[tuple[str, IntArray]]:
    """What has to stay after a failure: the ids that met it, and the same assumptions of modules of the same class."""
    where = outcome.modules[0] if outcome.modules else ""
    if not outcome.ids:
        near = [(w, ids) for w, ids in open_ if w in outcome.modules[:2]]
        return near or open_ or [("", np.flatnonzero(free))]
    blamed = [(where, ids) for ids in outcome.ids]
    mine = np.zeros(len(record.ids), dtype=bool)
    for ids in outcome.ids:
        mine[record.ids.find(ids)] = True
    modules = dict(model.named_modules())
    seen: Counter[str] = Counter()
    ordinals = []
    for w, _ in record.assumptions:
        ordinals.append((*_place_of(w, modules), seen[w]))
        seen[w] += 1
    guilty = {
        ordinal
        for ordinal, (w, ids) in zip(ordinals, record.assumptions, strict=True)
        if w in outcome.modules[:2] and mine[record.ids.find(ids)].any()
    }
    for ordinal, (w, ids) in zip(ordinals, record.assumptions, strict=True):
        if ordinal in guilty:
            stays = ids[is_free(record, free, ids)]
            if stays.size:
                blamed.append((w, stays))
    return blamed


def _place_of(name: str, modules: Mapping[str, nn.Module]) -> tuple[type, str]:
    """The innermost class around a module that is not PyTorch's, and the module's name in it: a place in the code."""
    inner: list[str] = []
    while name and is_of_torch(modules.get(name)):
        name, _, last = name.rpartition(".")
        inner.insert(0, last)
    return type(modules.get(name)), ".".join(inner)


def _run(
    model: nn.Module,
    example_inputs: Any,
    record: TraceRecord,
    free: BoolArray,
    settings: Settings,
    options: dict[str, str],
    turn: int,
) -> Outcome:
    """One forward of the widened network: how far it came as it should, and what stood in its way."""
    times = _multiplicities(record, free, turn)
    wide, wide_record = _widen(model, record, times, settings)
    tracer = Tracer(wide, record=wide_record, probing=True, **options)
    tracer.free = free
    failed, by_width = None, False
    try:
        run_forward(tracer, example_inputs, meta=True)
    except Exception as error:
        failed = error
    shapes = shape_conflicts(record, wide_record, times) + piece_conflicts(record, wide_record, times)
    ends: list[tuple[int, tuple[str, ...], list[IntArray]]] = [(s, m, [ids]) for s, m, ids in shapes]
    if tracer.first_conflict is not None:
        ends.append((*tracer.first_conflict, tracer.conflicts))
    if failed is not None:
        met: list[IntArray] = [layer.ravel() for t in tensors_in(tracer.operands) for layer in tracer.shadow_of(t)]
        ids: list[IntArray] = [i[is_free(record, free, i)] for i in met]
        modules = tracer.failing or ((tracer.failed,) if tracer.failed else ())
        if not any(i.size for i in ids):  # a number taken from what the module was given
            ids = next((mine for m in modules if (mine := _free_inputs(record, wide_record, m, free))), [])
        if not any(i.size for i in ids):  # or from another layer
            given = {n for n in tree_leaves(tracer.operands) if type(n) is int}
            ids, by_width = layers_as_wide_as(given, record, times, free), True
        ends.append((tracer.steps, modules, [i for i in ids if i.size]))
    elif not ends:
        scalars = scalar_conflicts(record, tracer, times, free)
        if scalars:
            return Outcome(False, tracer.steps, (), scalars, by_width=True, counted=True)
        end = size_conflict(record, tracer, times, free)
        if end is not None:
            return Outcome(False, tracer.steps, *end, by_width=True)
    if not ends:
        return Outcome(True, tracer.steps, (), [])
    first = min(end[0] for end in ends)
    steps, modules, ids = next(end for end in ends if end[0] == first)
    return Outcome(False, steps, modules, ids, by_width)


def _free_inputs(record: TraceRecord, wide: TraceRecord, module: str, free: BoolArray) -> list[IntArray]:
    found = [ids[is_free(record, free, ids)] for ids in wide.inputs.get(module, [])]
    return [ids for ids in found if ids.size]


def _join_that_helps(
    model: nn.Module, record: TraceRecord, outcome: Outcome, outcome_of: Callable[..., Outcome]
) -> bool:
    """Whether a size was one of the module's input (``reshape(B, N, C)``): then both are as wide as each other, joined.

    The same is done in all modules of its class.
    """
    if not outcome.modules or not outcome.ids:
        return False
    name = outcome.modules[0]
    met = np.unique(np.concatenate([record.ids.find(ids) for ids in outcome.ids]))
    uses: dict[str, list[SizeUse]] = {}
    for use in record.sizes:
        uses.setdefault(use.modules[0] if use.modules else "", []).append(use)
    inexact = record.ids.find(np.concatenate([ids for ids, _ in record.inexact] or [np.zeros(0, np.int64)]))
    modules = dict(model.named_modules())
    like = [n for n, m in modules.items() if type(m) is type(modules.get(name))]
    for i, use in enumerate(uses.get(name, [])):
        mine = widths_of(use, record)
        if mine is None or not np.isin(mine, met).any():
            continue
        for j, given in enumerate(record.inputs.get(name, [])):
            roots = record.ids.find(given)
            if len(given) != len(mine) or (roots == record.ids.find(mine)).all() or np.isin(roots, inexact).any():
                continue
            before = record.ids.copy()
            for other in like:
                theirs, widths = record.inputs.get(other, [])[j : j + 1], uses.get(other, [])[i : i + 1]
                width = widths_of(widths[0], record) if widths else None
                if theirs and width is not None and len(theirs[0]) == len(width):
                    record.ids.join(theirs[0], width, "is as wide as fixed data")
            resolve_split_views(record)
            propagate_balance_pins(record)
            tried = outcome_of(record.settings, ~pinned_ids(record))
            if tried.passed or tried.steps > outcome.steps:
                return True
            record.ids.restore(before)
    return False


def _multiplicities(record: TraceRecord, free: BoolArray, turn: int) -> IntArray:
    """How often the widened network has every channel, by root: once where it must stay, else three to ten times.

    Two would not do: two shuffles in a row put pairs back in place.

    Channels of one layer, and what has to lose equally many, have the same number; streams that many layers make have
    the smallest, and other layers take turns. In a later ``turn`` all take turns, those first that had the same number.
    """
    ids, classes = record.ids, Ids()
    node = classes.fresh(len(ids))
    arrays: list[IntArray] = [array.ravel() for _, array in record.producers]
    arrays += [blocks.ravel() for _, blocks in record.balance]
    arrays += [split.table.ravel() for split in record.split_views]
    reads = _selected(record)
    for own, read in reads:  # as wide as what it reads, whether or not it will be
        classes.join(node[ids.find(own)], node[ids.find(read)], "")
    made: Counter[int] = Counter()
    for array in arrays:
        roots = ids.find(array)
        roots = roots[is_free(record, free, roots)]
        if len(roots):
            classes.join(node[roots], node[roots[:1]], "")
    for array in dict(record.producers).values():
        made.update(np.unique(classes.find(node[ids.find(array)])).tolist())
    times = np.ones(len(ids), dtype=np.int64)
    roots = np.unique(ids.roots())
    roots = roots[is_free(record, free, roots)]
    kinds = classes.find(node[roots])
    order = np.unique(kinds)
    widest = max((int(kind) for kind in order), key=lambda kind: made[kind], default=-1)
    many = {kind for kind in order.tolist() if kind == widest or made[kind] > 4} if turn == 0 else set()
    number = {kind: 3 if kind in many else 4 + i // 7**turn % 7 for i, kind in enumerate(order.tolist())}
    times[roots] = [number[kind] for kind in kinds.tolist()]
    held: list[IntArray] = [r.ravel() for _, read, own in record.selects for r in (read, own)]
    held += [own[~is_free(record, free, read)] for own, read in reads]
    times[ids.find(np.concatenate(held or [np.zeros(0, np.int64)]))] = 1
    return times


def _widen(model: nn.Module, record: TraceRecord, times: IntArray, settings: Settings) -> tuple[nn.Module, TraceRecord]:
    """A copy of the modules around meta parameters in which every id stands as often as ``times`` of its root says."""
    ids = record.ids
    repeats = {axis: times[ids.find(a)] for axis, a in record.axes.items()}
    wide = TraceRecord(
        ids,
        axes={axis: np.repeat(ids.find(a), repeats[axis]) for axis, a in record.axes.items()},
        grouped=dict(record.grouped),
        regroup=dict(record.regroup),
        norms=record.norms,
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
    for (module, attribute), widths in settings.items():
        set_number(modules[module], attribute, int(times[ids.find(widths)].sum()))
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
