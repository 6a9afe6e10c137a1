"""The budget of `Target`: it and its floors refer to the dense network, also when a thinner one is selected from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.criteria import Scores
from slim.errors import SlimError
from slim.selection import (
    LIMITS,
    NothingRemovable,
    Selection,
    check_options,
    limits_by_module,
    overrides_due,
    overrides_of,
    select_groups,
)

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class DenseBudget:
    """A budget, the minimum width of every layer, and options of `slim.select`, all relative to the dense network.

    Args:
        budgets: ``ratio`` removed in [0, 1), ``macs`` or ``params`` kept in (0, 1]; exactly one is not None.
        max_layer_ratio: largest share of a layer that may be removed, in (0, 1].
        select: further options of `slim.select`.

    Attributes:
        kind, amount: the budget.

    Raises:
        SlimError: not exactly one budget, or a value out of range.
    """

    def __init__(self, budgets: Mapping[str, float | None], max_layer_ratio: float, select: Mapping[str, Any]) -> None:
        given = {k: v for k, v in budgets.items() if v is not None}
        if len(given) != 1:
            raise SlimError(
                f"target needs exactly one budget of {', '.join(budgets)}. Got {given or 'none'}. "
                "Set penalty.ratio, penalty.macs or penalty.params."
            )
        self.kind: str
        self.amount: float
        ((self.kind, self.amount),) = given.items()
        inside = 0 <= self.amount < 1 if self.kind == "ratio" else 0 < self.amount <= 1
        if not inside:
            bounds = "[0, 1)" if self.kind == "ratio" else "(0, 1]"
            raise SlimError(f"{self.kind} must be in {bounds}. Got {self.kind}={self.amount}. Set penalty.{self.kind}.")
        if not 0 < max_layer_ratio <= 1:
            raise SlimError(f"max_layer_ratio must be in (0, 1]. Got max_layer_ratio={max_layer_ratio}. "
                            "Set penalty.max_layer_ratio.")  # fmt: skip
        check_options(select)
        if select.get("granularity", "channel") != "channel":
            raise SlimError(
                f"target shrinks single channels. Got granularity={select['granularity']!r}. Leave it out of "
                "penalty.select, or use another penalty."
            )
        # Not by score per MAC: re-ranked as it goes, that takes a first layer down to its floor (experiments/nocliff).
        options = {"strategy": "global", **select}
        self._rules = {name: options.pop(name) for name in LIMITS if name in options}
        self._rules["max_layer_ratio"] = min(max_layer_ratio, self._rules.get("max_layer_ratio", 1.0))
        self._options = options
        self.dense: dict[str, float] = {}
        self.limits: dict[str, dict[str, Any]] = {}

    def set_dense(self, graph: ChannelGraph, entries: int) -> None:
        """Record ``graph`` as the dense network; ``entries`` is the number of its normalization scales."""
        self.dense = {"entries": entries, "macs": graph.macs(), "params": graph.params(), "scales": _scales(graph)}
        self.limits = limits_by_module(graph, self._rules)

    def removed_share(self, entries: int) -> float:
        """Share of the dense network's scales that a network with ``entries`` scales has lost."""
        return (self.dense["entries"] - entries) / max(1, self.dense["scales"])

    def select(self, graph: ChannelGraph, scores: Scores, share: float, entries: int) -> Selection:
        """What to remove from ``graph`` (with ``entries`` scales) when ``share`` in [0, 1] of the budget is due."""
        if self.kind == "ratio":
            # Counted in entries: a last channel that became unremovable is still there.
            more = self.dense["scales"] * (self.amount * share - self.removed_share(entries))
            # A ratio is of what is ranked: frozen scales stay, and the others make up for them.
            budget = min(max(0.0, more / max(1, int(scores.counts[graph.prunable].sum()))), 1.0 - 1e-9)
        else:
            now = graph.macs() if self.kind == "macs" else graph.params()
            budget = min(1.0, (1 - (1 - self.amount) * share) * self.dense[self.kind] / now)
        overrides = overrides_of(overrides_due(self.limits, share), graph)
        options = {**self._options, "overrides": overrides, self.kind: budget}
        try:
            return select_groups(graph, scores, **options)
        except NothingRemovable as error:
            if entries == self.dense["entries"]:
                raise
            return Selection(np.zeros(len(graph), bool), {}, {}, (str(error),))  # what was zero has gone to the floors

    def state(self) -> dict[str, Any]:
        """The budget and the dense network's sizes, plain numbers."""
        return {"budget": self.amount, "dense": dict(self.dense), "limits": self.limits}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore `state`; of older versions, which had floors alone, too."""
        floors = {module: {"min_channels": floor} for module, floor in state.get("floor", {}).items()}
        self.amount, self.dense, self.limits = state["budget"], dict(state["dense"]), state.get("limits", floors)


def _scales(graph: ChannelGraph) -> int:
    """Scales that may be removed."""
    return sum(int(graph.prunable[s.groups[s.groups >= 0]].sum()) for s in graph.scales if s.weight is not None)
