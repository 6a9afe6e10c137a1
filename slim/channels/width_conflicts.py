"""Where a forward of the widened network goes another way than the first one: see :mod:`slim.channels.width_probe`."""

from __future__ import annotations

import math

import numpy as np

from slim.channels.group_numbers import BoolArray
from slim.channels.ids import FIXED, IntArray, compress, varying
from slim.channels.trace_record import TraceRecord
from slim.channels.tracer import Tracer

SPREADS = frozenset(["expand", "repeat", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"])
"""Operations that are told how wide to make what has no channels: what it meets joins its channels, or pins them."""


def is_free(record: TraceRecord, free: BoolArray, ids: IntArray) -> BoolArray:
    """Which ``ids`` may go; ids that are newer than ``free`` belong to what only the widened network reached."""
    roots = record.ids.find(ids)
    known: BoolArray = free[np.where(roots < len(free), roots, FIXED)]
    return known


def shape_conflicts(
    record: TraceRecord, wide: TraceRecord, times: IntArray
) -> list[tuple[int, tuple[str, ...], IntArray]]:
    """Views that split an axis into other sizes than they should: (operations before, modules, ids)."""
    found = []
    for before, after in zip(record.split_views, wide.split_views, strict=False):
        roots = record.ids.find(before.table)
        if before.modules != after.modules or (times[roots] == 1).all():
            continue
        rows = roots.reshape(roots.shape[0], -1)
        if (rows != rows[:1]).any():
            continue  # part of a split that is checked itself
        axes = [d for d in varying(compress(roots)) if d]
        if len(axes) != 1:
            continue
        along = np.moveaxis(roots, axes[0], 0).reshape(roots.shape[axes[0]], -1)[:, 0]
        expected = list(roots.shape)
        expected[axes[0]] = int(times[along].sum())
        if expected[1:] != list(after.table.shape[1:]):
            found.append((after.step, after.modules, along[times[along] > 1]))
    return found


def piece_conflicts(
    record: TraceRecord, wide: TraceRecord, times: IntArray
) -> list[tuple[int, tuple[str, ...], IntArray]]:
    """Axes that are cut in other places than they should be: (operations before, modules, ids)."""
    found = []
    for before, after in zip(record.pieces, wide.pieces, strict=False):
        roots = [record.ids.find(ids) for ids in before.ids]
        met = [record.ids.find(ids) for ids in after.ids]
        expected = [np.repeat(piece, times[piece]) for piece in roots]
        same = len(met) == len(expected) and all(map(np.array_equal, met, expected))
        moved = np.concatenate([*roots, np.zeros(0, dtype=np.int64)])
        moved = moved[times[moved] > 1]
        if moved.size and before.modules == after.modules and not same:
            found.append((after.step, after.modules, moved))
    return found


def size_conflict(
    record: TraceRecord, tracer: Tracer, times: IntArray, free: BoolArray
) -> tuple[tuple[str, ...], list[IntArray]] | None:
    """An operation that makes data of another size of what is as wide as before: one of its numbers is a width.

    Returns:
        The modules in which it runs, and the channels that may go of layers as wide as the number.
    """
    widened = {axis.param for axis, ids in record.axes.items() if (times[record.ids.find(ids)] > 1).any()}
    for before, after in zip(record.operations, tracer.operations, strict=False):
        whole = {before.name, after.name} == {"slice", "alias"}  # one of them takes all that there is
        if before[1:3] != after[1:3] or not (whole or before.name == after.name):
            return None  # the forward goes another way
        told = before.name in SPREADS or widened & set(before.params) or not before.parents
        told = told or any(record.operations[p][4:] != tracer.operations[p][4:] for p in before.parents)
        if before[4:] == after[4:] or (told and not whole):
            continue
        shapes = zip((before.shape, *before.others), (after.shape, *after.others), strict=False)
        sizes = [(n, m) for old, new in shapes for n, m in zip(old, new, strict=False) if n != m]
        exact = layers_as_wide_as({m for _, m in sizes}, record, times, free)
        return after.modules, exact or layers_as_wide_as({n for n, _ in sizes}, record, np.ones_like(times), free)
    return None


def layers_as_wide_as(sizes: set[int], record: TraceRecord, times: IntArray, free: BoolArray) -> list[IntArray]:
    """The channels that may go of the layers whose width, widened by ``times``, is one of ``sizes``."""
    made = [ids for _, ids in record.producers if int(times[record.ids.find(ids)].sum()) in sizes]
    found = [ids[is_free(record, free, ids)] for ids in made]
    return [ids for ids in found if ids.size]


def scalar_conflicts(record: TraceRecord, tracer: Tracer, times: IntArray, free: BoolArray) -> list[IntArray]:
    """Channels that stay for numbers that changed with the widths (a scale by 1/sqrt(C)).

    Those of the layers as wide as the number says; else what it scales, or where that carries no channels any sum over
    channels. Where all that stays, the number comes from elsewhere: from any layer.
    """
    if len(record.scalars) != len(tracer.scalars):
        return []
    found: list[IntArray] = []
    changed = False
    for (before, layers), (after, _) in zip(record.scalars, tracer.scalars, strict=True):
        if before == after or (math.isnan(before) and math.isnan(after)):
            continue
        changed = True
        made = [ids for _, ids in record.producers if _is_of(before, len(ids))]
        made = [ids for ids in made if _is_of(after, int(times[record.ids.find(ids)].sum()))]
        found += made or [layer.ravel() for layer in layers] or record.summed
    found = [ids[is_free(record, free, ids)] for ids in found]
    return [ids for ids in found if ids.size] or ([np.flatnonzero(free)] if changed else [])


def _is_of(number: float, width: int) -> bool:
    """Whether a forward may have computed the number from a width; fused attention takes its fourth root."""
    return any(math.isclose(abs(number), width**power, rel_tol=1e-6) for power in (1, -1, 0.5, -0.5, 0.25, -0.25))
