"""One global order of removal steps: channels by score, whole branches among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.marginal import marginal
from slim.criteria.scores import Scores
from slim.selection.balanced_sets import balanced_sets
from slim.selection.block_steps import with_blocks
from slim.selection.limits import Limits
from slim.selection.protect import protected
from slim.selection.removal_steps import RemovalSteps, removal_steps

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Removed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ranking:
    """The steps of a selection in the order of their removal.

    Attributes:
        order: (n,) indices of the steps.
        fixed: How many of the first are removed whatever the budget is.
        rank_of: (n_groups,) position in the order of the step of every group; n where it must stay.
        per_step: (n_steps,) channels that count towards a ratio.
        counts: (n_groups,) what every group counts towards a ratio; 0 where it does not.
        silent: How many of the first have scales of exactly zero, as a law leaves what the cut will take; 0 for none.
    """

    graph: ChannelGraph
    order: Ints
    fixed: int
    rank_of: Ints
    per_step: Ints
    counts: Ints
    silent: int = 0

    @property
    def total(self) -> int:
        """What all groups together count towards a ratio."""
        return int(self.counts.sum())

    def removed_after(self, count: int) -> Removed:
        """The groups (n_groups,) removed by the first ``count`` steps."""
        return self.graph.closure(self.rank_of < count)

    def share_of(self, removed: Removed) -> float:
        """The ratio that a removal (n_groups,) amounts to."""
        return float(self.counts[removed].sum() / self.total) if self.total else 0.0


def rank(
    graph: ChannelGraph, scores: Scores, able: Removed, bounds: Limits, strategy: str, granularity: str
) -> tuple[Ranking, list[str]]:
    """Order everything that may be removed.

    Args:
        able: (n_groups,) which groups may go as far as structure and scores are concerned.

    Returns:
        The ranking, and one note per structure that keeps some of its channels.
    """
    candidates = able & ~bounds.ignored[graph.space_of]
    if len(graph.implied):
        candidates[graph.implied[:, 0]] = False  # a shared stream follows its readers
    candidates &= ~protected(graph, scores.values, candidates, bounds)
    set_of, notes = balanced_sets(graph, candidates, scores.values)
    if granularity == "layer":
        set_of[:] = -1
    steps = removal_steps(graph, set_of, scores.values, bounds)
    blocks: list[Ints] = []
    counts = scores.counts
    if granularity != "channel":
        steps, blocks = with_blocks(graph, scores, steps, bounds)
        if granularity == "layer":
            able, counts = np.zeros(len(graph), dtype=bool), np.zeros(len(graph), dtype=np.int64)
            counts[[inner[0] for _, inner in graph.branches]] = 1  # a branch counts as one
            able[[inner[0] for _, inner in graph.branches]] = True
        able = able.copy()
        able[np.concatenate([*blocks, np.zeros(0, np.int64)])] = True
    ordered = _order(graph, scores, steps, bounds, strategy)
    found = _ranking(graph, counts, np.where(able, counts, 0), ordered, steps, blocks)
    if scores.criterion == "gamma":
        found = replace(found, silent=_silent(steps.value[found.order], found.fixed))
    return found, notes + steps.notes


def _silent(values: Floats, fixed: int) -> int:
    """How many of the first steps, with mean scores ``values``, are at zero; the ``fixed`` ones go anyway."""
    at_zero = values == 0
    at_zero[:fixed] = True
    count = int(np.cumprod(at_zero).sum())
    return count if count > fixed else 0


def _ranking(
    graph: ChannelGraph, counts: Ints, counted: Ints, ordered: tuple[Ints, int], steps: RemovalSteps, blocks: list[Ints]
) -> Ranking:
    """``blocks``: the groups that the last steps remove, whatever steps of their own they have."""
    order, fixed = ordered
    position = np.full(len(steps) + 1, len(steps), dtype=np.int64)  # the last entry answers for step -1
    position[order] = np.arange(len(order))
    rank_of = position[steps.of]
    for step, inner in zip(range(len(steps) - len(blocks), len(steps)), blocks, strict=True):
        rank_of[inner] = np.minimum(rank_of[inner], position[step])
    going = rank_of < len(order)
    per_step = np.zeros(len(steps), dtype=np.int64)
    per_step[order] = np.bincount(rank_of[going], counts[going], minlength=len(order)).astype(np.int64)
    return Ranking(graph, order, fixed, rank_of, per_step, counted)


def _order(graph: ChannelGraph, scores: Scores, steps: RemovalSteps, bounds: Limits, strategy: str) -> tuple[Ints, int]:
    """The steps in the order of their removal, and how many of the first are removed whatever the budget is."""
    key = steps.value
    if strategy == "layer":
        key = steps.share
    elif strategy == "marginal" and len(steps):
        inside = np.flatnonzero(steps.of >= 0)
        # Scores below zero (standard scores) would turn the quotient around.
        shifted = scores.values - min(0.0, float(scores.values[inside].min()))
        score = np.bincount(steps.of[inside], shifted[inside], minlength=len(steps))
        saved = np.bincount(steps.of[inside], marginal(graph, "macs")[inside], minlength=len(steps))
        key = score / np.maximum(saved, 1.0)
    own = _own_ratio(graph, steps, bounds)
    # share is the middle of a step: at or below the ratio, the nearest count of the layer has gone.
    first = ~np.isnan(own) & (steps.share <= np.nan_to_num(own))
    never = ~np.isnan(own) & ~first
    by_name = np.argsort(np.argsort([s.name for s in graph.spaces], kind="stable"), kind="stable")
    named = np.where(steps.family < len(graph.spaces), steps.family, steps.space)
    order = np.lexsort((np.arange(len(steps)), by_name[named], _ascending(key, steps.family), ~first))
    order = order[~never[order]]
    return order.astype(np.int64), int(first.sum())


def _own_ratio(graph: ChannelGraph, steps: RemovalSteps, bounds: Limits) -> Floats:
    """The ratio (n_steps,) that the layers of a step have of their own, NaN for none; of several the smallest."""
    own = np.full(int(steps.family.max(initial=-1)) + 1, np.nan)
    inside = np.flatnonzero(steps.of >= 0)
    np.fmin.at(own, steps.family[steps.of[inside]], bounds.ratio[graph.space_of[inside]])
    np.fmin.at(own, steps.family, bounds.ratio[steps.space])  # of branches, which are not in ``of``
    return own[steps.family]


def _ascending(key: Floats, family: Ints) -> Ints:
    """The place of every step by ``key`` (n_steps,), never below that of an earlier step of its family.

    Floors and rounding need the order within a family, and equal scores may have means that differ in the last bit.
    """
    place = np.unique(key, return_inverse=True)[1].reshape(-1)
    order = np.argsort(family, kind="stable")
    start = family[order] * len(key)  # higher than all of the families before
    result = np.empty_like(place)
    result[order] = np.maximum.accumulate(start + place[order]) - start
    return result
