"""Equal share of every layer: the width multiplier (Howard et al. 2017, arXiv:1704.04861), a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slim.criteria.registry import CRITERIA, Evidence, Rank, criterion, find
from slim.criteria.scores import reduce_evidence

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("uniform")
def uniform(graph: ChannelGraph, by: str | Rank | None = None) -> Evidence:
    """A group's place in the order of its own layer, in (0, 1): a global threshold then removes the same share of each.

    Args:
        graph: The network's channels.
        by: Criterion that orders a layer; ``gamma`` where the network has scales, else ``l1``.
    """
    if by is None:
        by = "gamma" if any(s.weight is not None for s in graph.scales) else "l1"
    inner = find(by) if not isinstance(by, str) or by not in CRITERIA else CRITERIA[by]
    values, covered = reduce_evidence(inner.rank(graph), len(graph), inner.reduce)
    # Groups that are not covered, and pinned ones, are left out of the order.
    ranked = np.flatnonzero(covered & (graph.prunable | graph.inexact))
    order = ranked[np.lexsort((ranked, values[ranked], graph.space_of[ranked]))]
    space = graph.space_of[order]
    size = np.bincount(space, minlength=len(graph.spaces))
    start = np.cumsum(size) - size
    place = (np.arange(len(order)) - start[space] + 0.5) / size[space]
    yield order, place
    rest = np.flatnonzero(covered & ~(graph.prunable | graph.inexact))
    yield rest, np.ones(len(rest))
