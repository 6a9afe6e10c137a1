"""Removal steps: what a budget removes one at a time. A step is one balanced set, or as many as rounding asks for."""

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
class RemovalSteps:
    """All removal steps; floors and rounding hold as long as the steps of a space are taken in ascending order.

    Attributes:
        of: (n_groups,) the step of every group, -1 where it must stay.
        value: (n_steps,) mean score of its groups.
        share: (n_steps,) the middle of the step in its space's order, as a share of the space, in (0, 1).
        space: (n_steps,) index of the (first) space.
        family: (n_steps,) index of the first of the spaces that lose channels together; a branch's is its own.
        index: (n_steps,) smallest group index.
        notes: One line per structure that keeps some of its channels.
    """

    of: Ints
    value: Floats
    share: Floats
    space: Ints
    family: Ints
    index: Ints
    notes: list[str]

    def __len__(self) -> int:
        return len(self.value)


def removal_steps(graph: ChannelGraph, set_of: Ints, values: Floats, limits: Limits) -> RemovalSteps:
    """Group the ascending balanced sets of every space into steps, so that floors and ``round_to`` hold."""
    members = np.flatnonzero(set_of >= 0)
    _, set_index = np.unique(set_of[members], return_inverse=True)
    set_index = set_index.reshape(-1)
    n = int(set_index.max()) + 1 if len(set_index) else 0
    size = np.bincount(set_index, minlength=n)
    value = np.bincount(set_index, values[members], minlength=n) / np.maximum(size, 1)
    index = np.full(n, len(graph), dtype=np.int64)
    np.minimum.at(index, set_index, members)
    low = np.full(n, len(graph.spaces), dtype=np.int64)
    high = np.full(n, -1, dtype=np.int64)
    np.minimum.at(low, set_index, graph.space_of[members])
    np.maximum.at(high, set_index, graph.space_of[members])

    family = _families(len(graph.spaces), low, high, graph.space_of[members], set_index)
    coupled = np.bincount(family, minlength=len(graph.spaces)) > 1
    order = np.lexsort((index, value, family[low] if n else low))
    step = np.full(n, -1, dtype=np.int64)
    share = np.zeros(n)
    independent = order[~coupled[family[low[order]]]] if n else order
    width = np.array([len(s.groups) for s in graph.spaces], dtype=np.int64)
    notes: list[str] = []
    fresh = _steps_of_independent(independent, low, size, width, limits, step, share)
    for f in np.flatnonzero(coupled):
        mine = order[family[low[order]] == f]
        if len(mine):
            fresh = _steps_of_coupled(graph, mine, set_index, members, width, limits, step, share, fresh, notes)
    notes += _rounding_notes(graph, low[step < 0], low[step >= 0], limits)
    return _collected(graph, members, set_index, step, share, size, values, family, fresh, notes)


def _families(n_spaces: int, low: Ints, high: Ints, space: Ints, set_index: Ints) -> Ints:
    """The smallest space of every space's family: spaces that share a balanced set are one family, (n_spaces,)."""
    root = np.arange(n_spaces)
    if (low == high).all():
        return root
    for a, b in {(int(a), int(b)) for a, b in zip(low[set_index], space, strict=True) if a != b}:
        a, b = int(root[a]), int(root[b])
        root[root == max(a, b)] = min(a, b)
    return root


def _steps_of_independent(
    order: Ints, low: Ints, size: Ints, width: Ints, limits: Limits, step: Ints, share: Floats
) -> int:
    """Spaces that share no set: a step ends wherever the remaining width is allowed. Returns the number of steps."""
    if not len(order):
        return 0
    space = low[order]
    gone = np.cumsum(size[order])
    starts = np.flatnonzero(np.r_[True, space[1:] != space[:-1]])
    before = np.repeat(gone[starts] - size[order][starts], np.diff(np.r_[starts, len(order)]))
    gone = gone - before
    left = width[space] - gone
    allowed = (left >= limits.floor[space]) & (left % limits.round_to[space] == 0)
    # A balanced set belongs to the first allowed end at or behind it in its space.
    ends = np.cumsum(allowed) - allowed
    last = np.full(len(width), -1, dtype=np.int64)
    last[space[allowed]] = ends[allowed]
    inside = ends <= last[space]
    step[order[inside]] = ends[inside]
    share[order] = (gone - size[order] / 2) / width[space]
    return int(allowed.sum())


def _steps_of_coupled(
    graph: ChannelGraph,
    order: Ints,
    set_index: Ints,
    members: Ints,
    width: Ints,
    limits: Limits,
    step: Ints,
    share: Floats,
    fresh: int,
    notes: list[str],
) -> int:
    """Spaces that share balanced sets: in order, skip those below a floor, end a step where all widths are allowed."""
    by_set = np.argsort(set_index, kind="stable")
    bounds = np.searchsorted(set_index[by_set], np.arange(int(set_index.max()) + 2))
    gone = np.zeros(len(width), dtype=np.int64)
    pending: list[int] = []
    total = sum(int(bounds[b + 1] - bounds[b]) for b in order)
    seen = 0
    for b in order:
        groups = members[by_set[bounds[b] : bounds[b + 1]]]
        spaces, counts = np.unique(graph.space_of[groups], return_counts=True)
        share[b] = (seen + len(groups) / 2) / total
        seen += len(groups)
        if (width[spaces] - gone[spaces] - counts < limits.floor[spaces]).any():
            continue
        gone[spaces] += counts
        pending.append(int(b))
        cut = np.flatnonzero(gone)
        if ((width[cut] - gone[cut]) % limits.round_to[cut] == 0).all():
            step[pending] = fresh
            fresh += 1
            pending = []
    if pending and len(pending) == len(order):
        name = graph.spaces[int(graph.space_of[members[by_set[bounds[order[0]]]]])].name
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
    set_index: Ints,
    step: Ints,
    share: Floats,
    size: Ints,
    values: Floats,
    family: Ints,
    n_steps: int,
    notes: list[str],
) -> RemovalSteps:
    of = np.full(len(graph), -1, dtype=np.int64)
    of[members] = step[set_index]
    inside = np.flatnonzero(of >= 0)
    mine = of[inside]
    count = np.maximum(np.bincount(mine, minlength=n_steps), 1)
    value = np.bincount(mine, values[inside], minlength=n_steps) / count
    index = np.full(n_steps, len(graph), dtype=np.int64)
    np.minimum.at(index, mine, inside)
    space = np.full(n_steps, len(graph.spaces), dtype=np.int64)
    np.minimum.at(space, mine, graph.space_of[inside])
    kept = step >= 0
    middle = np.bincount(step[kept], (share * size)[kept], minlength=n_steps) / count
    return RemovalSteps(of, value, middle, space, family[space], index, notes)
