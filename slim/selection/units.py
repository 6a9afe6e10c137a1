"""Units: what a budget removes one by one. A unit is a bundle, or as many bundles as rounding asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.selection.limits import Limits

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """Every unit that may go, floors and rounding respected as long as units of a space go in ascending order.

    Attributes:
        of: (n_groups,) the unit of every group, -1 where it must stay.
        value: (n_units,) mean score of its groups.
        share: (n_units,) the middle of the unit in its space's order, as a share of the space, in (0, 1).
        space: (n_units,) index of the (first) space.
        index: (n_units,) smallest group index.
        notes: Which structures keep something, one line each.
    """

    of: Ints
    value: Floats
    share: Floats
    space: Ints
    index: Ints
    notes: list[str]

    def __len__(self) -> int:
        return len(self.value)


def units(graph: ChannelGraph, bundle_of: Ints, values: Floats, limits: Limits) -> Units:
    """Chunk the ascending bundles of every space so that floors hold and widths are multiples of ``round_to``."""
    members = np.flatnonzero(bundle_of >= 0)
    _, bundle = np.unique(bundle_of[members], return_inverse=True)
    bundle = bundle.reshape(-1)
    n = int(bundle.max()) + 1 if len(bundle) else 0
    size = np.bincount(bundle, minlength=n)
    value = np.bincount(bundle, values[members], minlength=n) / np.maximum(size, 1)
    index = np.full(n, len(graph), dtype=np.int64)
    np.minimum.at(index, bundle, members)
    low = np.full(n, len(graph.spaces), dtype=np.int64)
    high = np.full(n, -1, dtype=np.int64)
    np.minimum.at(low, bundle, graph.space_of[members])
    np.maximum.at(high, bundle, graph.space_of[members])

    family = _families(len(graph.spaces), low, high, graph.space_of[members], bundle)
    crowd = np.bincount(family, minlength=len(graph.spaces)) > 1
    order = np.lexsort((index, value, family[low] if n else low))
    unit = np.full(n, -1, dtype=np.int64)
    share = np.zeros(n)
    alone = order[~crowd[family[low[order]]]] if n else order
    width = np.array([len(s.groups) for s in graph.spaces], dtype=np.int64)
    notes: list[str] = []
    fresh = _chunk_alone(alone, low, size, width, limits, unit, share)
    for f in np.flatnonzero(crowd):
        mine = order[family[low[order]] == f]
        if len(mine):
            fresh = _chunk_together(graph, mine, bundle, members, width, limits, unit, share, fresh, notes)
    notes += _rounding_notes(graph, low[unit < 0], low[unit >= 0], limits)
    return _collected(graph, members, bundle, unit, share, size, values, low, fresh, notes)


def _families(n_spaces: int, low: Ints, high: Ints, space: Ints, bundle: Ints) -> Ints:
    """The smallest space of every space's family: spaces that share a bundle are one family, (n_spaces,)."""
    root = np.arange(n_spaces)
    if (low == high).all():
        return root
    for a, b in {(int(a), int(b)) for a, b in zip(low[bundle], space, strict=True) if a != b}:
        a, b = int(root[a]), int(root[b])
        root[root == max(a, b)] = min(a, b)
    return root


def _chunk_alone(order: Ints, low: Ints, size: Ints, width: Ints, limits: Limits, unit: Ints, share: Floats) -> int:
    """Spaces of their own, all at once: a unit ends wherever the width left is legal. Returns how many were made."""
    if not len(order):
        return 0
    space = low[order]
    gone = np.cumsum(size[order])
    starts = np.flatnonzero(np.r_[True, space[1:] != space[:-1]])
    before = np.repeat(gone[starts] - size[order][starts], np.diff(np.r_[starts, len(order)]))
    gone = gone - before
    left = width[space] - gone
    legal = (left >= limits.floor[space]) & (left % limits.round_to[space] == 0)
    # A bundle belongs to the first legal end at or behind it in its space.
    ends = np.cumsum(legal) - legal
    last = np.full(len(width), -1, dtype=np.int64)
    last[space[legal]] = ends[legal]
    inside = ends <= last[space]
    unit[order[inside]] = ends[inside]
    share[order] = (gone - size[order] / 2) / width[space]
    return int(legal.sum())


def _chunk_together(
    graph: ChannelGraph,
    order: Ints,
    bundle: Ints,
    members: Ints,
    width: Ints,
    limits: Limits,
    unit: Ints,
    share: Floats,
    fresh: int,
    notes: list[str],
) -> int:
    """Spaces that share bundles: in order, skip those below a floor, end a unit where all widths are legal."""
    by_bundle = np.argsort(bundle, kind="stable")
    bounds = np.searchsorted(bundle[by_bundle], np.arange(int(bundle.max()) + 2))
    gone = np.zeros(len(width), dtype=np.int64)
    pending: list[int] = []
    total = sum(int(bounds[b + 1] - bounds[b]) for b in order)
    seen = 0
    for b in order:
        groups = members[by_bundle[bounds[b] : bounds[b + 1]]]
        spaces, counts = np.unique(graph.space_of[groups], return_counts=True)
        share[b] = (seen + len(groups) / 2) / total
        seen += len(groups)
        if (width[spaces] - gone[spaces] - counts < limits.floor[spaces]).any():
            continue
        gone[spaces] += counts
        pending.append(int(b))
        cut = np.flatnonzero(gone)
        if ((width[cut] - gone[cut]) % limits.round_to[cut] == 0).all():
            unit[pending] = fresh
            fresh += 1
            pending = []
    if pending and len(pending) == len(order):
        name = graph.spaces[int(graph.space_of[members[by_bundle[bounds[order[0]]]]])].name
        notes.append(
            f"{name} and the layers it is balanced with stay whole: round_to cannot be met in all of them at once."
        )
    return fresh


def _rounding_notes(graph: ChannelGraph, kept: Ints, cut: Ints, limits: Limits) -> list[str]:
    whole = [
        s for s in np.setdiff1d(kept, cut) if limits.round_to[s] > 1 and len(graph.spaces[s].groups) > limits.floor[s]
    ]
    if not whole:
        return []
    names = ", ".join(graph.spaces[s].name for s in whole[:3]) + (", ..." if len(whole) > 3 else "")
    return [
        f"{len(whole)} layers stay whole: no smaller width is a multiple of round_to within their floors ({names})."
    ]


def _collected(
    graph: ChannelGraph,
    members: Ints,
    bundle: Ints,
    unit: Ints,
    share: Floats,
    size: Ints,
    values: Floats,
    low: Ints,
    n_units: int,
    notes: list[str],
) -> Units:
    of = np.full(len(graph), -1, dtype=np.int64)
    of[members] = unit[bundle]
    inside = np.flatnonzero(of >= 0)
    mine = of[inside]
    count = np.maximum(np.bincount(mine, minlength=n_units), 1)
    value = np.bincount(mine, values[inside], minlength=n_units) / count
    index = np.full(n_units, len(graph), dtype=np.int64)
    np.minimum.at(index, mine, inside)
    space = np.full(n_units, len(graph.spaces), dtype=np.int64)
    np.minimum.at(space, mine, graph.space_of[inside])
    kept = unit >= 0
    middle = np.bincount(unit[kept], (share * size)[kept], minlength=n_units) / count
    return Units(of, value, middle, space, index, notes)
