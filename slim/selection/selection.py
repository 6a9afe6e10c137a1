"""From scores to a plan: one global order of removal steps, of which the budget takes the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.channels import ChannelGraph
from slim.criteria.marginal import marginal
from slim.criteria.scores import Scores
from slim.errors import SlimError, expect, nearest
from slim.selection import latency as latency_tables
from slim.selection.balanced_sets import balanced_sets
from slim.selection.block_steps import GRANULARITIES, with_blocks
from slim.selection.budget import Target, cost_of, nearest_count, smallest_prefix, target_of
from slim.selection.limits import Limits, limits
from slim.selection.protect import protected
from slim.selection.removal_steps import RemovalSteps, removal_steps

if TYPE_CHECKING:
    from slim.channels import Plan

STRATEGIES = ("global", "marginal", "layer")
Removed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """Which channel groups are removed, and how that compares with the request.

    Attributes:
        removed: (n_groups,) bool, closed under what follows from it; ``graph.plan(removed)`` is the plan.
        requested: The target as given, e.g. ``{"macs": 0.5}``; empty without one.
        achieved: ``ratio`` of channels removed, and fractions of ``macs``, ``params`` and the target's cost kept.
        notes: One line for every part of the request that could not be met.
    """

    removed: Removed
    requested: dict[str, float]
    achieved: dict[str, float]
    notes: tuple[str, ...] = field(default=())


def select(graph: ChannelGraph, scores: Scores, **options: Any) -> Plan:
    """The plan for the groups that :func:`select_groups` removes; same arguments."""
    removed = select_groups(graph, scores, **options).removed
    return graph.plan(removed)


def select_groups(
    graph: ChannelGraph,
    scores: Scores,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    memory: float | None = None,
    latency: Any = None,
    min_channels: int = 1,
    max_layer_ratio: float = 1.0,
    round_to: int = 1,
    ignore: Iterable[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    strategy: str = "global",
    granularity: str = "channel",
    inexact: bool = False,
    table: Any = None,
) -> Selection:
    """Choose the groups to remove. Deterministic; a smaller budget keeps a subset; no layer is ever emptied.

    Args:
        graph: The network's channels.
        scores: From :func:`slim.score`; small goes first, ties by layer name and index.
        ratio: Share of the channels to remove, in [0, 1): scales over scales, or groups over groups without any. The
            nearest count is removed.
        macs: Multiply-accumulates to keep, as a fraction in (0, 1] or an absolute number above 1. Never exceeded.
        params: Parameters to keep, likewise.
        memory: Elements of the largest input + output of one layer to keep, likewise.
        latency: Milliseconds of a forward to keep, likewise, by layer times measured on this machine (``table``); the
            notes hold what the rebuilt network was measured to take.
        min_channels: Groups that every layer keeps at least.
        max_layer_ratio: Largest share that any layer loses.
        round_to: Every layer that loses channels keeps a multiple of this.
        ignore: Patterns of module names whose layers stay whole.
        overrides: Per pattern, any of ratio, max_layer_ratio, min_channels, round_to, ignore for the layers it names.
            Layers with a ratio of their own lose it whatever the budget, and it counts towards the budget.
        strategy: ``global``: by score. ``marginal``: by score per MAC saved. ``layer``: the same share of each layer.
        granularity: ``channel``: single channels. ``layer``: whole residual branches, of which rebuild leaves the
            identity; ``ratio`` is then the share of the branches. ``both``: one order of channels and branches, in
            which a branch stands at the mean of its gammas; ``min_channels`` holds for the branches that stay.
        inexact: Also remove groups whose removal changes the statistics of a normalization over channels.
        table: From :func:`slim.selection.latency.measure`; measured here, in seconds, when it is needed and not given.

    Raises:
        SlimError: A bad option, a pattern that matches nothing, or a budget that no removal meets.
    """
    expect("graph", graph, ChannelGraph, "Use slim.trace.")
    expect("scores", scores, Scores, "Use slim.score.")
    target = target_of(ratio=ratio, macs=macs, params=params, memory=memory, latency=latency)
    if strategy not in STRATEGIES:
        raise SlimError(
            f"strategy must be one of {', '.join(STRATEGIES)}. Got strategy={strategy!r}."
            f" {nearest(str(strategy), STRATEGIES)} Set prune.strategy."
        )
    if granularity not in GRANULARITIES:
        raise SlimError(
            f"granularity must be one of {', '.join(GRANULARITIES)}. Got granularity={granularity!r}."
            f" {nearest(str(granularity), GRANULARITIES)} Set prune.granularity."
        )
    if granularity != "channel" and strategy != "global":
        raise SlimError(
            f"Whole layers are ranked by score. Got strategy={strategy!r} with granularity={granularity!r}."
            " Set prune.strategy=global."
        )
    if target is not None and target.kind == "latency" and table is None:
        table = latency_tables.measure(graph)
    _check_scores(graph, scores)
    bounds = limits(
        graph,
        min_channels=min_channels,
        max_layer_ratio=max_layer_ratio,
        round_to=round_to,
        ignore=ignore,
        overrides=overrides,
    )
    allowed = graph.prunable | graph.inexact if inexact else graph.prunable
    able = allowed & scores.covered
    candidates = able & ~bounds.ignored[graph.space_of]
    if len(graph.implied):
        candidates[graph.implied[:, 0]] = False  # a shared stream follows its readers
    candidates &= ~protected(graph, scores.values, candidates, bounds)
    set_of, notes = balanced_sets(graph, candidates, scores.values)
    if granularity == "layer":
        set_of[:] = -1
    steps = removal_steps(graph, set_of, scores.values, bounds)
    blocks: list[npt.NDArray[np.int64]] = []
    counts = scores.counts
    if granularity != "channel":
        steps, blocks = with_blocks(graph, scores, steps, bounds)
        inside = np.concatenate([*blocks, np.zeros(0, np.int64)])
        if granularity == "layer":
            able, counts = np.zeros(len(graph), dtype=bool), np.zeros(len(graph), dtype=np.int64)
            counts[[inner[0] for _, inner in graph.branches]] = 1  # a branch counts as one
            able[[inner[0] for _, inner in graph.branches]] = True
        able[inside] = True
    ranking = _ranking(graph, counts, _order(graph, scores, steps, bounds, strategy), steps, blocks)
    total = int(counts[able].sum())
    costs: dict[str, float] = {}
    if target is None:
        removed, notes = ranking.removed_after(ranking.fixed), []
    elif target.kind == "ratio":
        removed, notes = _select_ratio(ranking, target.amount, total, notes + steps.notes)
    else:
        removed, costs, notes = _select_cost(ranking, target, table)
    achieved = {
        "ratio": float(counts[removed & able].sum() / total) if total else 0.0,
        "macs": graph.macs(removed) / max(graph.macs(), 1),
        "params": graph.params(removed) / max(graph.params(), 1),
        **costs,
    }
    requested = {target.kind: target.amount} if target is not None else {}
    return Selection(removed, requested, achieved, (*notes, *scores.notes))


@dataclass(frozen=True)
class _Ranking:
    """The steps of a selection in the order of their removal.

    Attributes:
        order: (n,) indices of the steps.
        fixed: How many of the first are removed whatever the budget is.
        rank_of: (n_groups,) position in the order of the step of every group; n where it must stay.
        per_step: (n_steps,) channels that count towards a ratio.
    """

    graph: ChannelGraph
    order: npt.NDArray[np.int64]
    fixed: int
    rank_of: npt.NDArray[np.int64]
    per_step: npt.NDArray[np.int64]

    def removed_after(self, count: int) -> Removed:
        """The groups (n_groups,) removed by the first ``count`` steps."""
        return self.graph.closure(self.rank_of < count)


def _ranking(
    graph: ChannelGraph,
    counts: npt.NDArray[np.int64],
    ordered: tuple[npt.NDArray[np.int64], int],
    steps: RemovalSteps,
    blocks: list[npt.NDArray[np.int64]],
) -> _Ranking:
    """``blocks``: the groups that the last steps remove, whatever steps of their own they have."""
    order, fixed = ordered
    rank = np.full(len(steps) + 1, len(steps), dtype=np.int64)  # the last entry answers for step -1
    rank[order] = np.arange(len(order))
    rank_of = rank[steps.of]
    for step, inner in zip(range(len(steps) - len(blocks), len(steps)), blocks, strict=True):
        rank_of[inner] = np.minimum(rank_of[inner], rank[step])
    going = rank_of < len(order)
    per_step = np.zeros(len(steps), dtype=np.int64)
    per_step[order] = np.bincount(rank_of[going], counts[going], minlength=len(order)).astype(np.int64)
    return _Ranking(graph, order, fixed, rank_of, per_step)


def _select_ratio(ranking: _Ranking, amount: float, total: int, notes: list[str]) -> tuple[Removed, list[str]]:
    """Remove the number of channels nearest to ``amount * total``; notes when structure does not allow that many."""
    graph, n = ranking.graph, len(ranking.order)
    if not n and amount > 0:
        raise SlimError(
            f"Something must be removable. Got ratio={amount:g} and no channel that may go and has a score"
            f" ({int(graph.prunable.sum())} of {len(graph)} groups are prunable). {' '.join(notes[:1])}"
            " Relax prune.ignore and the floors, or see graph.report()."
        )
    cumulative = np.cumsum(ranking.per_step[ranking.order])
    requested = amount * total
    count = max(nearest_count(cumulative, requested), ranking.fixed)
    reached = int(cumulative[count - 1]) if count else 0
    short = count == n and requested - reached > 0.5 * max(1, int(ranking.per_step.max(initial=1)))
    if not short:
        return ranking.removed_after(count), []
    line = (
        f"Requested ratio={amount:g}, achieved {reached / total:.4f}: floors, ignored layers, rounding"
        " and structure let no more channels go."
    )
    return ranking.removed_after(count), [line, *notes]


def _select_cost(ranking: _Ranking, target: Target, table: Any) -> tuple[Removed, dict[str, float], list[str]]:
    """Remove the fewest steps that meet a budget of MACs, parameters, memory or latency."""
    graph, n = ranking.graph, len(ranking.order)
    cost = cost_of(graph, target.kind, table)
    whole = cost(np.zeros(len(graph), dtype=bool))
    limit = target.amount * whole if target.amount <= 1 else target.amount
    prefix = smallest_prefix(lambda count: cost(ranking.removed_after(count)), n, limit)
    if prefix is None:
        raise _out_of_reach(target, limit, whole, cost(ranking.removed_after(n)))
    count, measured = max(prefix, ranking.fixed), table.dense if table is not None else math.nan
    if target.kind == "latency" and count:
        count, measured = table.confirm(ranking.removed_after, count, n, limit)
        if measured > limit * latency_tables.NOISE:
            raise _out_of_reach(target, limit, whole, measured)
    removed = ranking.removed_after(count)
    if target.kind == "memory":
        return removed, {"memory": graph.peak_activation(removed) / max(graph.peak_activation(), 1)}, []
    if target.kind != "latency":
        return removed, {}, []
    note = (
        f"latency: {limit:.3f} ms requested, {table.cost(removed):.3f} ms predicted, {measured:.3f} ms measured on"
        f" the rebuilt network, {table.dense:.3f} ms before the cut (this machine, input {graph.input_shapes})."
    )
    return removed, {"latency": measured / table.dense}, [note]


def _out_of_reach(target: Target, limit: float, whole: float, least: float) -> SlimError:
    return SlimError(
        f"The budget must be within reach. Got {target.kind}={target.amount:g} ({limit:.6g} of {whole:.6g});"
        f" with all that may go, {least:.6g} remain ({least / whole:.4f}). Set prune.{target.kind} to at least that,"
        " or relax prune.min_channels, max_layer_ratio, round_to and ignore."
    )


def _order(
    graph: ChannelGraph, scores: Scores, steps: RemovalSteps, bounds: Limits, strategy: str
) -> tuple[npt.NDArray[np.int64], int]:
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
    own = bounds.ratio[steps.space]
    # share is the middle of a step: at or below the ratio, the nearest count of the layer has gone.
    first = ~np.isnan(own) & (steps.share <= np.nan_to_num(own))
    never = ~np.isnan(own) & ~first
    by_name = np.argsort(np.argsort([s.name for s in graph.spaces], kind="stable"), kind="stable")
    order = np.lexsort((steps.index, by_name[steps.space], key, ~first))
    order = order[~never[order]]
    return order.astype(np.int64), int(first.sum())


def _check_scores(graph: ChannelGraph, scores: Scores) -> None:
    if len(scores.values) != len(graph):
        raise SlimError(
            f"Scores must belong to the graph. Got {len(scores.values)} scores for {len(graph)} channel groups."
            " Call slim.score on the graph that is selected from."
        )
    bad = int((~np.isfinite(scores.values) & scores.covered).sum())
    if bad:
        raise SlimError(
            f"Scores must be finite numbers. Got {bad} that are NaN or infinite (criterion {scores.criterion})."
            " Score again with finite weights and data."
        )
