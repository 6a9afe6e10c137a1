"""What may go because it is exactly zero already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.criteria.scores import Scores, as_float64, scale_counts
from slim.selection.iterative import dense_limits
from slim.selection.limits import limits
from slim.selection.ranking import rank

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def exact_zeros(
    graph: ChannelGraph, dense: ChannelGraph | None = None, *, min_channels: int = 1, **rules: Any
) -> npt.NDArray[np.bool_]:
    """Groups (groups,) whose every gamma is exactly zero, as far as structure and limits let them go.

    Args:
        graph: Of the network.
        dense: Of the network before earlier cuts, to which ``rules`` refer.
        min_channels: Groups that every layer keeps at least.
        rules: As of :func:`slim.select`: ``max_layer_ratio``, ``round_to``, ``ignore``, ``overrides``.
    """
    live, scaled = np.zeros(len(graph), dtype=bool), np.zeros(len(graph), dtype=bool)
    for scale in graph.scales:
        if scale.weight is None:
            continue
        inside = scale.groups >= 0
        gamma = as_float64(graph.model.get_parameter(scale.weight))
        scaled[scale.groups[inside]] = True
        live[scale.groups[inside][gamma[inside] != 0]] = True
    zero = scaled & ~live & graph.prunable
    rules = {"min_channels": min_channels, **rules}
    bounds = limits(graph, **(rules if dense is None or dense is graph else dense_limits(dense, graph, rules)))
    scores = Scores(np.where(zero, 0.0, 1.0), scaled, scale_counts(graph, scaled), "zeros")
    ranking, _ = rank(graph, scores, zero, bounds, "global", "channel")
    return ranking.removed_after(len(ranking.order))
