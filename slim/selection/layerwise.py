"""Removals within one layer at a time, for sensitivity analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.scores import Scores
from slim.selection.balanced_sets import balanced_sets
from slim.selection.limits import limits
from slim.selection.protect import protected
from slim.selection.removal_steps import removal_steps

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def layerwise_removals(
    graph: ChannelGraph, scores: Scores, shares: Sequence[float]
) -> dict[str, list[npt.NDArray[np.bool_]]]:
    """Per space that can lose channels: for every share the removed groups (n_groups,), balanced, lowest scores first.

    Spaces that share a balanced structure lose their channels together, under the first one's name.
    """
    free = limits(graph)
    candidates = graph.prunable & scores.covered
    if len(graph.implied):
        candidates[graph.implied[:, 0]] = False
    candidates &= ~protected(graph, scores.values, candidates, free)
    set_of, _ = balanced_sets(graph, candidates, scores.values)
    steps = removal_steps(graph, set_of, scores.values, free)
    result: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for s in np.unique(steps.space):
        mine = steps.space == s
        masks = []
        for share in shares:
            going = np.append(mine & (steps.share <= share), False)  # the last entry answers for step -1
            masks.append(graph.closure(going[steps.of]))
        result[graph.spaces[s].name] = masks
    return result
