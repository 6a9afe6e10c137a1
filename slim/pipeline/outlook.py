"""What the cut would be if sparse training ended now: told after every epoch, from the gammas alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import slim
from slim import criteria
from slim.channels import ChannelGraph, plan_of
from slim.selection import select_next_cut

if TYPE_CHECKING:
    from slim.pipeline.workspace import Workspace

NEAR_ZERO = 1e-2
"""A scale below it counts as gone."""


def outlook(work: Workspace, number: int) -> Callable[[ChannelGraph], dict[str, float]] | None:
    """Looks ahead to the cut of the pass ``number`` (0-based); ``None`` where there is none, or one that is measured.

    Channels are ranked as the cut will rank them, or by gamma where its criterion needs data.

    Returns:
        From the graph of the network as it is now to shares of the dense network: ``zero`` of its removable scales are
        near zero or gone, ``target`` of its channels would go, ``macs`` of its MACs would be left; and ``ready``: 1
        when every scale that would go is near zero, else 0.
    """
    settings = work.settings
    if "prune" not in settings.phases or settings.budget[0] == "latency":
        return None
    options = dict(settings.criterion)
    name = options.pop("name")
    if "loader" in inspect.signature(criteria.find(name).rank).parameters:
        name, options = "gamma", {}
    wanted = {**settings.prune.limits, settings.budget[0]: settings.steps[number].amount}
    dense = work.trace(work.dense())
    scales = max(len(_gammas(dense, dense.prunable)), 1)

    def look(graph: ChannelGraph) -> dict[str, float]:
        scores = slim.score(graph, name, **options)
        if plan_of(graph.model) is None:
            selection = slim.select_groups(graph, scores, **wanted)
        else:
            selection = select_next_cut(dense, graph, scores, **wanted)
        return {
            "zero": 1 - float((_gammas(graph, graph.prunable) >= NEAR_ZERO).sum()) / scales,
            "target": selection.achieved["ratio"],
            "macs": selection.achieved["macs"],
            "ready": float(_gammas(graph, selection.removed).max(initial=0.0) < NEAR_ZERO),
        }

    return look


def _gammas(graph: ChannelGraph, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """|gamma| of every scale on the chosen groups (groups,), in one vector."""
    found = [np.zeros(0, np.float32)]
    for scale in graph.scales:
        if scale.weight is not None:
            gamma = graph.model.get_parameter(scale.weight).detach().abs().float().cpu().numpy()
            found.append(gamma[(scale.groups >= 0) & chosen[scale.groups]])
    return np.concatenate(found)
