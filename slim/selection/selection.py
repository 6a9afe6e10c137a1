"""From scores to a plan: one global order of removal steps, of which the budget takes the first."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.channels import ChannelGraph
from slim.criteria.scores import Scores
from slim.errors import SlimError, expect, nearest, shown
from slim.selection import latency as latency_tables
from slim.selection.block_steps import GRANULARITIES
from slim.selection.budget import COSTS, Target, cost_of, nearest_count, smallest_prefix, target_of
from slim.selection.limits import Limits, check_limits, limits
from slim.selection.ranking import Ranking, Removed, rank
from slim.selection.reasons import as_lines, reasons

if TYPE_CHECKING:
    from slim.channels import Plan

STRATEGIES = ("global", "marginal", "layer")


class NothingRemovable(SlimError):
    """Nothing of a network may go: a mistake of the request, unless earlier cuts took all there was."""


@dataclass(frozen=True)
class Selection:
    """Which channel groups are removed, and how that compares with the request.

    Attributes:
        removed: (n_groups,) bool, closed under what follows from it; ``graph.plan(removed)`` is the plan.
        requested: The target as given, e.g. ``{"macs": 0.5}``; empty where only overrides have ratios.
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
            nearest count is removed, or those with scales of exactly zero where they miss it by half a step or less.
        macs: Multiply-accumulates to keep, as a fraction in (0, 1] or an absolute number above 1. Never exceeded.
        params: Parameters to keep, likewise.
        memory: Elements of the largest input + output of one layer to keep, likewise.
        latency: Milliseconds of a forward to keep, likewise, by layer times measured on this machine (``table``); the
            notes hold what the rebuilt network was measured to take.
        min_channels: Groups that every layer keeps at least.
        max_layer_ratio: Largest share that any layer loses.
        round_to: Every layer that loses channels keeps a multiple of this; of a stream that is traced with
            ``residual="select"`` what its readers keep, and a note says so.
        ignore: Patterns of module names whose layers stay whole.
        overrides: Per pattern, any of ratio, max_layer_ratio, min_channels, round_to, ignore for the layers it names.
            Layers with a ratio of their own lose it whatever the budget, and it counts towards the budget; of layers
            that lose their channels together the smallest ratio.
        strategy: ``global``: by score. ``marginal``: by score per MAC saved. ``layer``: the same share of each layer.
        granularity: ``channel``: single channels. ``layer``: whole residual branches, of which rebuild leaves the
            identity; ``ratio`` is then the share of the branches. ``both``: one order of channels and branches, in
            which a branch stands at the mean of its gammas; ``min_channels`` holds for the branches that stay.
        inexact: Also remove groups whose removal changes the statistics of a normalization over channels.
        table: From :func:`slim.selection.latency.measure`; measured here, in seconds, when it is needed and not given.

    Raises:
        SlimError: A bad option, no budget and no override with a ratio, a pattern that matches nothing, or a budget
            that no removal meets.
    """
    expect("graph", graph, ChannelGraph, "Use slim.trace.")
    expect("scores", scores, Scores, "Use slim.score.")
    target = target_of(ratio=ratio, macs=macs, params=params, memory=memory, latency=latency)
    _check_choices(strategy, granularity, inexact)
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
    _check_budget(target, bounds)
    able = (graph.prunable | graph.inexact if inexact else graph.prunable) & scores.covered
    ranking, notes = rank(graph, scores, able, bounds, strategy, granularity)
    costs: dict[str, float] = {}
    if target is None:
        removed, notes = ranking.removed_after(ranking.fixed), []
    elif target.kind == "ratio":
        removed, notes = _select_ratio(ranking, target.amount, notes, _unscored(graph, scores))
    else:
        removed, costs, notes = _select_cost(ranking, target, table, _unscored(graph, scores))
    requested = {target.kind: target.amount} if target is not None else {}
    notes += _uneven_streams(graph, removed, bounds)
    return Selection(removed, requested, _achieved(ranking, removed) | costs, (*notes, *scores.notes))


def _unscored(graph: ChannelGraph, scores: Scores) -> str:
    """A sentence where channels may go that nothing ranks, else nothing."""
    missing = int((graph.prunable & ~scores.covered).sum())
    return f" {missing} groups that may go have no score (penalty=target: no scale)." if missing else ""


def _uneven_streams(graph: ChannelGraph, removed: Removed, bounds: Limits) -> list[str]:
    """A line where ``round_to`` does not hold: a stream keeps what any of its readers keeps."""
    names = []
    for index in np.unique(graph.space_of[graph.implied[:, 0]]) if len(graph.implied) else ():
        space = graph.spaces[index]
        gone = int(removed[space.groups].sum())
        if gone and (len(space.groups) - gone) % bounds.round_to[index]:
            names.append(space.name)
    if not names:
        return []
    shown_names = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} streams keep what their readers keep, no multiple of round_to ({shown_names})."]


def _achieved(ranking: Ranking, removed: Removed) -> dict[str, float]:
    """The share of the channels that goes, and the shares of MACs and parameters that stay."""
    graph = ranking.graph
    return {
        "ratio": ranking.share_of(removed),
        "macs": graph.macs(removed) / max(graph.macs(), 1),
        "params": graph.params(removed) / max(graph.params(), 1),
    }


def _select_ratio(ranking: Ranking, amount: float, notes: list[str], unscored: str) -> tuple[Removed, list[str]]:
    """Remove the number of channels nearest to a share of them; notes when structure does not allow that many."""
    graph, n = ranking.graph, len(ranking.order)
    if not n and amount > 0:
        raise NothingRemovable(_nothing_may_go(graph, f"ratio={amount:g}", notes, unscored))
    cumulative = np.cumsum(ranking.per_step[ranking.order])
    total = ranking.total
    requested = amount * total
    count = max(nearest_count(cumulative, requested), ranking.fixed)
    half_a_step = 0.5 * max(1, int(ranking.per_step.max(initial=1)))
    silent = ranking.silent
    if 0 < silent < count and requested - cumulative[silent - 1] <= half_a_step:
        count = silent  # as near as a law could bring it: nothing that lives goes for the rest of a step
    reached = int(cumulative[count - 1]) if count else 0
    short = count == n and requested - reached > half_a_step
    if not short:
        return ranking.removed_after(count), []
    line = (
        f"Requested ratio={amount:g}, achieved {reached / total:.4f}: floors, ignored layers, rounding"
        " and structure let no more channels go."
    )
    return ranking.removed_after(count), [line, *notes]


def _nothing_may_go(graph: ChannelGraph, budget: str, notes: list[str], unscored: str) -> str:
    kept = as_lines(reasons(graph)[:1])
    return (
        f"Something must be removable. Got {budget} and no channel that may go and has a score"
        f" ({int(graph.prunable.sum())} of {len(graph)} groups are prunable).{unscored} {' '.join([*notes[:1], *kept])}"
        " Relax prune.ignore, prune.min_channels, max_layer_ratio and round_to, or see graph.report()."
    )


def _select_cost(
    ranking: Ranking, target: Target, table: Any, unscored: str
) -> tuple[Removed, dict[str, float], list[str]]:
    """Remove the fewest steps that meet a budget of MACs, parameters, memory or latency."""
    graph, n = ranking.graph, len(ranking.order)
    cost = cost_of(graph, target.kind, table)
    whole = cost(np.zeros(len(graph), dtype=bool))
    limit = target.amount * whole if target.amount <= 1 else target.amount
    prefix = smallest_prefix(lambda count: cost(ranking.removed_after(count)), n, limit)
    if prefix is None and not n:
        raise SlimError(_nothing_may_go(graph, f"{target.kind}={target.amount:g}", [], unscored))
    if prefix is None:
        raise _out_of_reach(target, limit, whole, cost(ranking.removed_after(n)), unscored)
    count, measured = max(prefix, ranking.fixed), table.dense if table is not None else math.nan
    if target.kind == "latency" and count:
        count, measured = table.confirm(ranking.removed_after, count, n, limit)
        if measured > limit * latency_tables.NOISE:
            raise _out_of_reach(target, limit, whole, measured, unscored)
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


def _out_of_reach(target: Target, limit: float, whole: float, least: float, unscored: str) -> SlimError:
    return SlimError(
        f"The budget must be within reach. Got {target.kind}={target.amount:g} ({limit:.6g} of {whole:.6g});"
        f" with all that may go, {least:.6g} remain ({least / whole:.4f}).{unscored} Set prune.{target.kind} to at"
        " least that, or relax prune.min_channels, max_layer_ratio, round_to and ignore."
    )


def _check_budget(target: Target | None, bounds: Limits) -> None:
    if target is None and np.isnan(bounds.ratio).all():
        raise SlimError(
            f"A budget must say how much goes. Got none of ratio, {', '.join(COSTS)}. Set one of them in prune, or a"
            " ratio in prune.overrides."
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of :func:`select_groups` but for the budget, as far as they are wrong for any network.

    Raises:
        SlimError: An unknown name, or a value out of range.
    """
    known = [name for name in list(inspect.signature(select_groups).parameters)[2:] if name not in ("ratio", *COSTS)]
    for name in options:
        if name not in known:
            got = shown(str(name), options[name])
            raise SlimError(f"Options must be those of slim.select. Got {got}. {nearest(str(name), known)}")
    _check_choices(**{name: options[name] for name in ("strategy", "granularity", "inexact") if name in options})
    check_limits(**{name: options[name] for name in inspect.signature(check_limits).parameters if name in options})


def _check_choices(strategy: str = "global", granularity: str = "channel", inexact: bool = False) -> None:
    for name, value, known in (("strategy", strategy, STRATEGIES), ("granularity", granularity, GRANULARITIES)):
        if value not in known:
            raise SlimError(
                f"{name} must be one of {', '.join(known)}. Got {name}={value!r}."
                f" {nearest(str(value), known)} Set prune.{name}."
            )
    expect("inexact", inexact, bool, "Set prune.inexact to true or false.")
    if granularity != "channel" and strategy != "global":
        raise SlimError(
            f"Whole layers are ranked by score. Got strategy={strategy!r} with granularity={granularity!r}."
            " Set prune.strategy=global."
        )


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
