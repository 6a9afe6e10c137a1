"""What `Target` steers for: a budget and floors of the dense network, asked of a network that gets thinner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.criteria import Scores
from slim.errors import SlimError
from slim.selection import Selection, select_groups

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class Aim:
    """A budget (``kind`` is ratio, macs or params), the least width of every layer, and options of `slim.select`.

    Both refer to the dense network that `measure` saw, also when `select` is asked about a thinner one.
    """

    def __init__(self, budgets: Mapping[str, float | None], max_layer_ratio: float, select: Mapping[str, Any]) -> None:
        given = {k: v for k, v in budgets.items() if v is not None}
        if len(given) != 1:
            raise SlimError(
                f"target needs exactly one budget of {', '.join(budgets)}. Got {given or 'none'}. "
                "Set penalty.ratio, penalty.macs or penalty.params."
            )
        self.kind: str
        self.budget: float
        ((self.kind, self.budget),) = given.items()
        inside = 0 <= self.budget < 1 if self.kind == "ratio" else 0 < self.budget <= 1
        if not inside:
            bounds = "[0, 1)" if self.kind == "ratio" else "(0, 1]"
            raise SlimError(f"{self.kind} must be in {bounds}. Got {self.kind}={self.budget}. Set penalty.{self.kind}.")
        if not 0 < max_layer_ratio <= 1:
            raise SlimError(f"max_layer_ratio must be in (0, 1]. Got max_layer_ratio={max_layer_ratio}. "
                            "Set penalty.max_layer_ratio.")  # fmt: skip
        self.max_layer_ratio = max_layer_ratio
        # Not by score per MAC: re-ranked as it goes, that takes a first layer down to its floor (experiments/nocliff).
        self.options = {"strategy": "global", **select}
        self.dense: dict[str, float] = {}
        self.floor: dict[str, int] = {}

    def measure(self, graph: ChannelGraph, entries: int) -> None:
        """Take ``graph``, whose normalization scales have so many ``entries``, as the dense network."""
        self.dense = {"entries": entries, "macs": graph.macs(), "params": graph.params(), "scales": _scales(graph)}
        share, least = 1 - self.max_layer_ratio, int(self.options.get("min_channels", 1))
        self.floor = {}
        for space in graph.spaces:
            # The subtraction is exact to an ulp only: 10 * (1 - 0.9) must ask for one channel, not two.
            floor = max(least, int(np.ceil(len(space.groups) * share - 1e-9)))
            # By module: a space is named after its first producer, which may leave it as the network gets thinner.
            self.floor.update(dict.fromkeys((space.name, *space.modules), floor))

    def gone(self, entries: int) -> float:
        """Share of the dense network's scales that a network with so many entries has lost."""
        return (self.dense["entries"] - entries) / max(1, self.dense["scales"])

    def select(self, graph: ChannelGraph, scores: Scores, share: float, entries: int) -> Selection:
        """What to remove from ``graph``, of so many ``entries``, after ``share`` of the way to the budget."""
        if self.kind == "ratio":
            # Counted in entries: a last channel that became unremovable is still there.
            more = self.dense["scales"] * (self.budget * share - self.gone(entries))
            budget = max(0.0, more / max(1, _scales(graph)))
        else:
            now = graph.macs() if self.kind == "macs" else graph.params()
            budget = min(1.0, (1 - (1 - self.budget) * share) * self.dense[self.kind] / now)
        floors = {
            space.name: {"min_channels": max(self.floor.get(m, 1) for m in (space.name, *space.modules))}
            for space in graph.spaces
        }
        overrides = {**floors, **(self.options.get("overrides") or {})}
        return select_groups(graph, scores, **{**self.options, "overrides": overrides, self.kind: budget})

    def state(self) -> dict[str, Any]:
        """The budget and the dense network's sizes, plain numbers."""
        return {"budget": self.budget, "dense": dict(self.dense), "floor": dict(self.floor)}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.budget, self.dense, self.floor = state["budget"], dict(state["dense"]), dict(state["floor"])


def _scales(graph: ChannelGraph) -> int:
    """Scales that may be removed."""
    return sum(int(graph.prunable[s.groups[s.groups >= 0]].sum()) for s in graph.scales if s.weight is not None)
