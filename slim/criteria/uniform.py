"""Equal share of every layer: the width multiplier (Howard et al. 2017, arXiv:1704.04861), a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slim.criteria.registry import Evidence, Rank, criterion, find, needs_data
from slim.criteria.scores import reduce_evidence
from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("uniform")
def uniform(graph: ChannelGraph, by: str | Rank | None = None) -> Evidence:
    """A group's place in the order of its own layer, in (0, 1): a global threshold then removes the same share of each.

    Args:
        graph: The network's channels.
        by: Criterion that orders a layer, one without data; ``gamma`` where the network has scales, else ``l1``.

    Raises:
        SlimError: See :func:`score`; or ``by`` looks at data.
    """
    if by is None:
        by = "gamma" if any(s.weight is not None for s in graph.scales) else "l1"
    inner = find(by)
    if needs_data(by):
        raise SlimError(
            f"uniform orders each layer by a criterion without data. Got by={inner.name!r}. Set criterion.by to gamma"
            f" or l1; strategy=layer removes the same share of each layer in the order of {inner.name}."
        )
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
