"""Constraints applied between the trace and the graph: which ids must stay, and how shared streams are treated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from torch import nn

from slim.channels.branches import is_original
from slim.channels.ids import FIXED, IntArray, components, compress, varying
from slim.channels.select_layer import can_select
from slim.channels.trace_record import TraceRecord

BoolArray = npt.NDArray[np.bool_]


def _touch_counts(record: TraceRecord, arrays: Iterable[IntArray]) -> Counter[int]:
    """How many of ``arrays`` touch each root."""
    counts: Counter[int] = Counter()
    for ids in arrays:
        counts.update(np.unique(record.ids.find(ids.ravel())).tolist())
    return counts


def resolve_shared_streams(record: TraceRecord, model: nn.Module, residual: str) -> None:
    """Decide which normalizations read a stream that others read too, and treat streams as ``residual`` says."""
    if residual == "group":
        return
    ids = record.ids
    reads = [n.read for n in record.norms if n.read is not None]
    if residual == "keep":
        producers = _touch_counts(record, (p for _, p in record.producers))
        shared = _touch_counts(record, reads)
        several = {r for r, n in (*producers.items(), *shared.items()) if n > 1}
        ids.pin(np.array(sorted(several), dtype=np.int64), "a shared stream is kept (residual=keep)")
        return
    modules = dict(model.named_modules())
    raw = _touch_counts(record, [*record.raw_reads, *record.outputs])
    norms = _touch_counts(record, reads)
    for note in record.norms:
        if not note.selective or note.read is None:
            continue
        roots = ids.find(note.read).tolist()
        alone = all(norms[r] <= 1 and not raw[r] for r in roots)
        if alone or not can_select(modules[note.module]):
            note.selective = False
            ids.join(note.own, note.read, "reads fixed data")
    streams = [n.read for n in record.norms if n.selective and n.read is not None]
    streams += [read for _, read, own in record.selects if own is not read]
    for read in streams:
        direct = np.array([r for r in ids.find(read).tolist() if raw[r]], dtype=np.int64)
        ids.pin(direct, "the stream is read directly besides its normalizations")


def pin_fixed_axes(record: TraceRecord, model: nn.Module) -> None:
    """Axes that no layer makes (tables of positions, learned queries) and widths a module insists on stay."""
    ids = record.ids
    made = np.zeros(len(ids), dtype=bool)
    for array in [p for _, p in record.producers] + [n.own for n in record.norms]:
        made[ids.find(array)] = True
    for array, reason in ids.pins:
        if not reason:  # positions (kernel taps): no channels
            made[ids.find(array)] = True
    modules = dict(model.named_modules())
    kinds = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    whole = tuple(n for n, m in modules.items() if isinstance(m, kinds))
    for axis, array in record.axes.items():
        reads = (axis.param.rpartition(".")[2], axis.dim) == ("weight_ih", 1)  # a cell's input
        if not reads and any(axis.param.startswith(f"{name}.") or not name for name in whole):
            ids.pin(array, f"{axis.param.rpartition('.')[0]} keeps its width (heads, cells) whole")
        if is_original(axis.param):
            # A weight divided by its own norm: what a mask zeroes would become 0 / 0.
            ids.pin(array, f"{axis.param} is a parametrization; slim.fold(model) makes it a plain weight")
        orphans = array[~made[ids.find(array)]]
        ids.pin(orphans, f"no layer makes these channels ({axis.param}, axis {axis.dim})")


def resolve_split_views(record: TraceRecord) -> None:
    """Choose for every axis that was seen as several along which of them whole slices can go; join along the others.

    The last one, if the forward leaves it a choice; else the one that keeps most slices apart.
    """
    ids = record.ids
    for _ in range(4):
        stable = True
        for split in record.split_views:
            table = ids.find(split.table)
            axes = [d for d in varying(compress(table)) if d]
            if (table != table[:1]).any():
                best = 0  # part of another split, which goes in slices of its own
            elif len(axes) > 1:
                apart = {d: components(table, d) for d in axes}
                best = axes[-1] if apart[axes[-1]] > 1 else max(axes, key=lambda d: apart[d])
            else:
                continue
            if axes and axes != [best]:
                first = tuple(slice(None) if d == best else slice(0, 1) for d in range(table.ndim))
                ids.join(table, table[first], "meets fixed data in a view")
                stable = False
        if stable:
            return


def pinned_ids(record: TraceRecord) -> BoolArray:
    """True for every id that must stay."""
    pinned = np.zeros(len(record.ids), dtype=bool)
    pinned[FIXED] = True
    for array, _ in record.ids.pins:
        pinned[record.ids.find(array)] = True
    return pinned


def propagate_balance_pins(record: TraceRecord) -> None:
    """Blocks that cannot lose equally many because some of their channels must stay: all of them stay."""
    ids = record.ids
    while True:
        pinned, before = pinned_ids(record), len(ids.pins)
        for where, blocks in record.balance:
            stuck = pinned[ids.find(blocks)].sum(axis=1)
            if len(np.unique(stuck)) > 1 or (0 < stuck[0] < blocks.shape[1] and blocks.shape[1] - stuck[0] < 1):
                free = blocks[~pinned[ids.find(blocks)]]
                if free.size:
                    ids.pin(free, f"equal blocks cannot lose equally many ({where})")
                    pinned[ids.find(free)] = True
        if len(ids.pins) == before:
            return
