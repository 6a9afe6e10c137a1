"""What a study optimizes: numbers of a run's record, each with its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from slim.errors import SlimError, nearest

COSTS = {
    "macs": "macs",
    "params": "params",
    "channels": "channels",
    "latency": "latency_ms_b1",
    "latency_b64": "latency_ms_b64",
}
"""Costs of the network that a run ends with, and where its record has them; latencies in milliseconds, measured."""

METRIC = "val"
"""The metric of the last phase on held-out data. The test data choose nothing."""


def directions(
    names: Sequence[str], mode: str, given: str | Sequence[str] | None = None
) -> list[Literal["maximize", "minimize"]]:
    """``maximize`` or ``minimize`` for each objective.

    Args:
        names: Of :data:`METRIC` and :data:`COSTS`.
        mode: ``metric.mode`` of the runs.
        given: What the configuration says of directions; ``None``: they follow from the names.

    Raises:
        SlimError: An unknown objective or direction, none at all, or not one direction for each.

    >>> directions(["val", "macs"], "max")
    ['maximize', 'minimize']
    """
    known = [METRIC, *COSTS]
    for name in names:
        if name not in known:
            raise SlimError(f"objectives must be known. Got hydra.sweeper.objectives={name}. {nearest(name, known)}")
    if not names or len(set(names)) < len(names):
        raise SlimError(
            f"A study has at least one objective, each once. Got hydra.sweeper.objectives=[{','.join(names)}]. "
            "Set hydra.sweeper.objectives=[val]."
        )
    if given is None:
        return ["maximize" if name == METRIC and mode == "max" else "minimize" for name in names]
    wanted = [given] if isinstance(given, str) else list(given)
    if len(wanted) != len(names) or not set(wanted) <= {"maximize", "minimize"}:
        raise SlimError(
            f"direction must be maximize or minimize for each of {len(names)} objectives. "
            f"Got hydra.sweeper.direction={wanted}. Set hydra.sweeper.direction=null, and it follows from the names."
        )
    return ["maximize" if way == "maximize" else "minimize" for way in wanted]


def values(record: Mapping[str, Any], names: Sequence[str]) -> list[float]:
    """The objectives of a finished run; NaN for what its record does not have.

    >>> values({"phases": {"sparse": {"val": 0.9}, "prune": {}}, "rows": {"dense": {"macs": 8}}}, ["val", "macs"])
    [0.9, 8.0]
    """
    phases: Mapping[str, Mapping[str, Any]] = record.get("phases") or {}
    rows: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    measured = [figures[METRIC] for figures in phases.values() if METRIC in figures]
    last = list(rows.values())[-1] if rows else {}
    found = [measured[-1] if measured and name == METRIC else last.get(COSTS.get(name, ""), None) for name in names]
    return [float(value) if isinstance(value, int | float) else math.nan for value in found]
