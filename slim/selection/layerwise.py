"""One layer at a time: what goes when a layer alone loses a share of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.scores import Scores
from slim.selection.bundles import bundles
from slim.selection.limits import limits
from slim.selection.protect import protected
from slim.selection.units import units

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def within_layers(
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
    bundle_of, _ = bundles(graph, candidates, scores.values)
    found = units(graph, bundle_of, scores.values, free)
    result: dict[str, list[npt.NDArray[np.bool_]]] = {}
    for s in np.unique(found.space):
        mine = found.space == s
        masks = []
        for share in shares:
            going = np.append(mine & (found.share <= share), False)  # the last entry answers for unit -1
            masks.append(graph.closure(going[found.of]))
        result[graph.spaces[s].name] = masks
    return result
