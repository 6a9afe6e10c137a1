"""After the trace, before the groups: which ids must stay, and how shared streams are treated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from torch import nn

from slim.channels.facts import Facts
from slim.channels.ids import FIXED, IntArray
from slim.channels.select_layer import can_select

BoolArray = npt.NDArray[np.bool_]


def _touch_counts(facts: Facts, arrays: Iterable[IntArray]) -> Counter[int]:
    """How many of ``arrays`` touch each root."""
    counts: Counter[int] = Counter()
    for ids in arrays:
        counts.update(np.unique(facts.ids.find(ids.ravel())).tolist())
    return counts


def settle_streams(facts: Facts, model: nn.Module, residual: str) -> None:
    """Decide which normalizations read a stream that others read too, and treat streams as ``residual`` says."""
    if residual == "group":
        return
    ids = facts.ids
    reads = [n.read for n in facts.norms if n.read is not None and n.kind == "batch"]
    if residual == "keep":
        producers = _touch_counts(facts, (p for _, p in facts.producers))
        shared = _touch_counts(facts, reads)
        several = {r for r, n in (*producers.items(), *shared.items()) if n > 1}
        ids.pin(np.array(sorted(several), dtype=np.int64), "a shared stream is kept (residual=keep)")
        return
    modules = dict(model.named_modules())
    raw = _touch_counts(facts, [*facts.raw_reads, *facts.outputs])
    norms = _touch_counts(facts, reads)
    for note in facts.norms:
        if not note.split or note.read is None:
            continue
        roots = ids.find(note.read).tolist()
        alone = all(norms[r] <= 1 and not raw[r] for r in roots)
        if alone or not can_select(modules[note.module]):
            note.split = False
            ids.join(note.own, note.read, "reads fixed data")
    streams = [n.read for n in facts.norms if n.split and n.read is not None]
    streams += [read for _, read, own in facts.selects if own is not read]
    for read in streams:
        direct = np.array([r for r in ids.find(read).tolist() if raw[r]], dtype=np.int64)
        ids.pin(direct, "the stream is read directly besides its normalizations")


def pin_stuck(facts: Facts, model: nn.Module) -> None:
    """Axes that no layer makes (tables of positions, learned queries) and widths a module insists on stay."""
    ids = facts.ids
    made = np.zeros(len(ids), dtype=bool)
    for array in [p for _, p in facts.producers] + [n.own for n in facts.norms]:
        made[ids.find(array)] = True
    modules = dict(model.named_modules())
    whole = tuple(n for n, m in modules.items() if isinstance(m, (nn.MultiheadAttention, nn.RNNBase)))
    for axis, array in facts.axes.items():
        if any(axis.param.startswith(f"{name}.") or not name for name in whole):
            ids.pin(array, f"{axis.param.rpartition('.')[0]} keeps its width (heads, cells) whole")
        if ".parametrizations." in axis.param or axis.param.endswith(("weight_g", "weight_v")):
            # A weight divided by its own norm: what a mask zeroes would become 0 / 0.
            ids.pin(array, f"{axis.param} is a parametrization")
        orphans = array[~made[ids.find(array)]]
        ids.pin(orphans, f"no layer makes these channels ({axis.param}, axis {axis.dim})")


def pinned_ids(facts: Facts) -> BoolArray:
    """True for every id that must stay."""
    pinned = np.zeros(len(facts.ids), dtype=bool)
    pinned[FIXED] = True
    for array, _ in facts.ids.pins:
        pinned[facts.ids.find(array)] = True
    return pinned


def balance_pins(facts: Facts) -> None:
    """Blocks that cannot lose equally many because some of their channels must stay: all of them stay."""
    ids = facts.ids
    while True:
        pinned, before = pinned_ids(facts), len(ids.pins)
        for where, blocks in facts.balance:
            stuck = pinned[ids.find(blocks)].sum(axis=1)
            if len(np.unique(stuck)) > 1 or (0 < stuck[0] < blocks.shape[1] and blocks.shape[1] - stuck[0] < 1):
                free = blocks[~pinned[ids.find(blocks)]]
                if free.size:
                    ids.pin(free, f"equal blocks cannot lose equally many ({where})")
                    pinned[ids.find(free)] = True
        if len(ids.pins) == before:
            return
