"""Equal share of every layer: the width multiplier (Howard et al. 2017, arXiv:1704.04861), the baseline to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slim.criteria.registry import CRITERIA, Evidence, Rank, criterion, find
from slim.criteria.scores import reduced

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("uniform")
def uniform(graph: ChannelGraph, by: str | Rank | None = None) -> Evidence:
    """A group's place in the order of its own layer, in (0, 1): a global threshold then takes the same share of each.

    Args:
        graph: The network's channels.
        by: Criterion that orders a layer; ``gamma`` where the network has scales, else ``l1``.
    """
    if by is None:
        by = "gamma" if any(s.weight is not None for s in graph.scales) else "l1"
    inner = find(by) if not isinstance(by, str) or by not in CRITERIA else CRITERIA[by]
    values, covered = reduced(inner.rank(graph), len(graph), inner.reduce)
    # Groups that no criterion covers keep out of the order, and pinned ones too: nobody competes with them.
    competing = np.flatnonzero(covered & (graph.prunable | graph.inexact))
    order = competing[np.lexsort((competing, values[competing], graph.space_of[competing]))]
    space = graph.space_of[order]
    size = np.bincount(space, minlength=len(graph.spaces))
    start = np.cumsum(size) - size
    place = (np.arange(len(order)) - start[space] + 0.5) / size[space]
    yield order, place
    rest = np.flatnonzero(covered & ~(graph.prunable | graph.inexact))
    yield rest, np.ones(len(rest))
