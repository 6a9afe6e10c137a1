"""Iterative pruning: the next cut of a thinner network; budget, floors and caps refer to the dense network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.criteria.scores import Scores, scale_counts
from slim.selection import latency
from slim.selection.budget import Target, cost_of, target_of
from slim.selection.limits import limits
from slim.selection.schedules import relative
from slim.selection.selection import NothingRemovable, Selection, select_groups

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

LEAST = {"min_channels": 1, "round_to": 1, "ignore": False}
LIMITS = ("min_channels", "max_layer_ratio", "round_to", "ignore", "overrides")


def select_next_cut(dense: ChannelGraph, graph: ChannelGraph, scores: Scores, **options: Any) -> Selection:
    """Choose what to remove from ``graph`` so that it meets the budget, which refers to ``dense``.

    Args:
        dense: The network before any cut.
        graph: The same network after earlier cuts.
        scores: Of ``graph``.
        options: As of :func:`select_groups`; everything refers to the dense network. The latency of both networks is
            measured here.

    Returns:
        The groups of ``graph`` to remove (none where the network is below the budget already); requested and achieved
        are of the dense network.

    Raises:
        SlimError: As :func:`select_groups`.
    """
    target = target_of(**{kind: options.pop(kind, None) for kind in ("ratio", "macs", "params", "memory", "latency")})
    counted: dict[str, Any] = {key: options[key] for key in ("inexact", "granularity") if key in options}
    counted["unscaled"] = bool(scores.counts[_unscaled(graph) & graph.prunable].any())
    budget, table, before, notes = _next_budget(dense, graph, target, options.pop("table", None), counted)
    try:
        selection = select_groups(graph, scores, **budget, table=table, **dense_limits(dense, graph, options))
    except NothingRemovable:
        if graph is dense:
            raise
        selection = Selection(np.zeros(len(graph), bool), {}, {})  # earlier cuts have gone to the floors

    def share(kind: str, removed: npt.NDArray[np.bool_]) -> float:
        if kind == "latency":
            return before * (selection.achieved["latency"] if removed.any() else 1.0)
        return _share(dense, graph, kind, removed, **counted)

    kinds = dict.fromkeys(("ratio", "macs", "params", *([target.kind] if target else [])))
    notes += [f"After earlier cuts, of what they left: {line}" for line in selection.notes]
    if target is not None and not selection.removed.any():
        notes = [_nothing_removed(target, share(target.kind, selection.removed))]
    return Selection(
        selection.removed,
        {target.kind: target.amount} if target else {},
        {kind: share(kind, selection.removed) for kind in kinds},
        tuple(notes),
    )


def _next_budget(
    dense: ChannelGraph, graph: ChannelGraph, target: Target | None, table: Any, counted: dict[str, Any]
) -> tuple[dict[str, Any], Any, float, list[str]]:
    """(budget of ``graph`` as an option, latency table, share of the dense latency that ``graph`` has, notes)."""
    if target is None:
        return {}, table, 1.0, []
    if target.kind != "latency":
        budget = remaining_budget(dense, graph, target.kind, target.amount, **counted)
        return {target.kind: budget}, table, 1.0, []
    table = latency.measure(graph) if table is None else table
    whole, now = latency.forward_times([dense, graph])
    amount = relative("latency", target.amount, now / whole) if target.amount <= 1 else target.amount
    note = f"latency: before this cut {now:.3f} ms, the dense network {whole:.3f} ms."
    return {"latency": amount}, table, now / whole, [note]


def remaining_budget(
    dense: ChannelGraph, graph: ChannelGraph, kind: str, amount: float, *, inexact: bool = False,
    granularity: str = "channel", unscaled: bool = False,
) -> float:  # fmt: skip
    """The budget of ``graph`` with which ``amount`` of the dense network is reached; absolute costs stay as they are.

    Args:
        dense: The network before any cut.
        graph: The same network after earlier cuts.
        kind: ``ratio``, ``macs``, ``params`` or ``memory``.
        amount: As of :func:`select_groups`.
        inexact: Whether groups whose removal changes the function count as removable.
        granularity: As of :func:`select_groups`: with ``layer`` a ratio counts branches.
        unscaled: Whether the scores rank channels that no normalization scales, so that a ratio counts each as one.
    """
    if graph is dense:
        return amount
    if kind == "ratio":
        # Counted over all groups: the last channel of a layer is there, but no longer removable.
        left = _removable(graph, inexact, granularity, unscaled)
        gone = _entries(dense, granularity, unscaled) - _entries(graph, granularity, unscaled)
        more = amount * _removable(dense, inexact, granularity, unscaled) - gone
        return min(max(0.0, more / max(1, left)), 1.0 - 1e-9)
    return amount if amount > 1 else relative(kind, amount, _share(dense, graph, kind, np.zeros(len(graph), bool)))


def _share(
    dense: ChannelGraph, graph: ChannelGraph, kind: str, removed: npt.NDArray[np.bool_], inexact: bool = False,
    granularity: str = "channel", unscaled: bool = False,
) -> float:  # fmt: skip
    """Share of the dense network's cost left without ``removed``; for ``ratio`` the share removed."""
    if kind == "ratio":
        gone = _entries(dense, granularity, unscaled) - _entries(graph, granularity, unscaled)
        gone += int(_counts(graph, granularity, unscaled)[removed].sum())
        return gone / max(1, _removable(dense, inexact, granularity, unscaled))
    return cost_of(graph, kind)(removed) / max(1.0, cost_of(dense, kind)(np.zeros(len(dense), bool)))


def _unscaled(graph: ChannelGraph) -> npt.NDArray[np.bool_]:
    """Groups (n_groups,) that no normalization scales."""
    bare: npt.NDArray[np.bool_] = scale_counts(graph, np.zeros(len(graph), bool)) == 0
    return bare


def _counts(graph: ChannelGraph, granularity: str, unscaled: bool) -> npt.NDArray[np.int64]:
    """Weight of each group in ratios, (n_groups,): its scales, or 1 without any where those count; of a branch 1."""
    if granularity == "layer":
        counts = np.zeros(len(graph), np.int64)
        counts[[inner[0] for _, inner in graph.branches]] = 1
        return counts
    return scale_counts(graph, np.full(len(graph), unscaled or _unscaled(graph).all()))


def _removable(graph: ChannelGraph, inexact: bool, granularity: str, unscaled: bool) -> int:
    if granularity == "layer":
        return len(graph.branches)
    able = graph.prunable | graph.inexact if inexact else graph.prunable
    return int(_counts(graph, granularity, unscaled)[able].sum())


def _entries(graph: ChannelGraph, granularity: str, unscaled: bool) -> int:
    """The same count over all groups, removable or not."""
    if granularity == "layer":
        return len(graph.branches)
    bare, scales = _unscaled(graph), sum(len(scale.groups) for scale in graph.scales if scale.weight is not None)
    return scales + int(bare.sum() if unscaled or bare.all() else 0)


def dense_limits(dense: ChannelGraph, graph: ChannelGraph, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of :func:`select_groups`, their limits as overrides of the layers that ``graph`` has left.

    Args:
        dense: The network before any cut, to which the limits refer.
        graph: The same network after earlier cuts.
        options: With or without limits.
    """
    rules = {name: value for name, value in options.items() if name in LIMITS}
    others = {name: value for name, value in options.items() if name not in LIMITS}
    return {**others, "overrides": overrides_of(limits_by_module(dense, rules), graph)}


def limits_by_module(dense: ChannelGraph, rules: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Limits of the dense network's layers as overrides, plain data, with the ``width`` that a ``ratio`` is of.

    By module: a space is named after its first producer, which may leave it as the network gets thinner.
    """
    bounds = limits(dense, **rules)
    found: dict[str, dict[str, Any]] = {}
    for index, space in enumerate(dense.spaces):
        rule: dict[str, Any] = {
            "min_channels": int(bounds.floor[index]),
            "round_to": int(bounds.round_to[index]),
            "ignore": bool(bounds.ignored[index]),
        }
        if not math.isnan(bounds.ratio[index]):
            rule |= {"ratio": float(bounds.ratio[index]), "width": len(space.groups)}
        for module in {space.name, *space.modules}:
            found[module] = _strictest(found.get(module, {}), rule)
    return found


def overrides_of(rules: Mapping[str, Mapping[str, Any]], graph: ChannelGraph) -> dict[str, dict[str, Any]]:
    """What :func:`limits_by_module` gave for the dense network, for the layers that ``graph`` has left."""
    overrides: dict[str, dict[str, Any]] = {}
    for space in graph.spaces:
        rule: dict[str, Any] = {}
        for module in (space.name, *space.modules):
            rule = _strictest(rule, rules[module]) if module in rules else rule
        if not rule:
            continue
        if "ratio" in rule:
            gone = 1.0 - len(space.groups) / rule.pop("width")
            rule["ratio"] = relative("ratio", rule["ratio"], min(max(gone, 0.0), 1.0 - 1e-9))
        overrides[space.name] = rule
    return overrides


def _strictest(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    rule = {key: max(one.get(key, least), other.get(key, least)) for key, least in LEAST.items()}
    ratio = min((each for each in (one, other) if "ratio" in each), key=lambda each: each["ratio"], default={})
    return rule | {key: ratio[key] for key in ("ratio", "width") if key in ratio}


def _nothing_removed(target: Target, share: float) -> str:
    state = "has lost" if target.kind == "ratio" else "keeps"
    what = "channels" if target.kind == "ratio" else target.kind
    return (
        f"Nothing was removed: the network {state} {100 * share:.1f}% of the dense network's {what} already,"
        f" and the budget is {target.kind}={target.amount:g}."
    )
