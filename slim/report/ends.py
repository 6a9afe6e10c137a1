"""The two networks of a run that people compare: the one it began with and the one it ended with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim.report import formatting


def ends(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Rows of the dense network, with the metric of the first that was trained, and of the last network.

    >>> ends({"rows": {"dense": {"macs": 9, "metric": None}, "sparse": {"macs": 9, "metric": 0.8}}})
    ({'macs': 9, 'metric': 0.8}, {'macs': 9, 'metric': 0.8})
    """
    networks: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    known = [networks[name] for name in formatting.LABELS if networks.get(name)] or [{}]
    trained = next((row for row in known if row.get("metric") is not None), known[0])
    return {**known[0], "metric": trained.get("metric")}, known[-1]


def trained_first(record: Mapping[str, Any]) -> str:
    """The row whose metric stands for the dense network; sparse, in a run that never trained a dense one."""
    networks: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    return next((name for name in formatting.LABELS if (networks.get(name) or {}).get("metric") is not None), "dense")


def kept(thin: Mapping[str, Any], dense: Mapping[str, Any], key: str) -> float | None:
    """What is left of a cost, as a share; ``None`` where one of both is unknown."""
    now, then = formatting.number(thin.get(key)), formatting.number(dense.get(key))
    return None if now is None or not then else now / then
