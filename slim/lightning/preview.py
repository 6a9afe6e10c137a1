"""A dry run of a cut: what would be removed now, ranked by scales alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slim import criteria
from slim.channels import ChannelGraph
from slim.lightning.selecting import select
from slim.lightning.traced import TracedNetwork

NEAR_ZERO = 1e-2
"""A scale below it counts as gone."""


def preview(
    traced: TracedNetwork, criterion: Any, budget: Mapping[str, Any], limits: Mapping[str, Any]
) -> dict[str, float]:
    """Select as a cut would, ranked by gamma where the criterion needs data; nothing is changed.

    Args:
        traced: The network.
        criterion: As for :func:`slim.score`.
        budget: Kind to amount, as a share of the dense network; none that is measured.
        limits: Of the selection.

    Returns:
        Shares of the dense network: ``zero`` of its removable scales are near zero or gone, ``target`` of its channels
        would go, ``macs`` would be left; ``ready``: 1 when every scale that would go is near zero.
    """
    name = criterion["name"] if isinstance(criterion, Mapping) else criterion
    if "loader" in inspect.signature(criteria.find(name).rank).parameters:
        criterion = "gamma"
    graph, dense = traced.graph, traced.dense_graph()
    selection = select(traced, criterion, budget, limits)
    near = _scales(graph, graph.prunable) >= NEAR_ZERO
    total = max(1, sum(int(inside.sum()) for _, inside in _inside(dense, dense.prunable)))
    return {
        "zero": 1 - float(near.sum()) / total,
        "target": selection.achieved["ratio"],
        "macs": selection.achieved["macs"],
        "ready": float(_scales(graph, selection.removed).max(initial=0.0) < NEAR_ZERO),
    }


def _scales(graph: ChannelGraph, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """|gamma| of every scale on the chosen groups (groups,), in one vector."""
    found: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for weight, inside in _inside(graph, chosen):
        found.append(graph.model.get_parameter(weight).detach().abs().float().cpu().numpy()[inside])
    return np.concatenate(found)


def _inside(graph: ChannelGraph, chosen: npt.NDArray[np.bool_]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Name of every scale's weight, and which of its channels belong to the chosen groups."""
    return [
        (scale.weight, (scale.groups >= 0) & chosen[scale.groups]) for scale in graph.scales if scale.weight is not None
    ]
