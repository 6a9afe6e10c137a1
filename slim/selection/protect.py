"""Groups that no budget may remove, because some layer would be left without inputs or outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.selection.limits import Limits

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def protected(
    graph: ChannelGraph, values: npt.NDArray[np.float64], candidates: npt.NDArray[np.bool_], bounds: Limits
) -> npt.NDArray[np.bool_]:
    """Groups that stay whatever the budget, (n_groups,) bool.

    The highest score on every axis of every parameter and in every block of a balanced structure stays, so that nothing
    is emptied even where a layer reads only part of a space; and of every shared stream the ``min_channels`` best-read
    channels keep their best reader, as does every channel in a balanced structure and of an ignored stream.
    """
    stay = np.zeros(len(graph), dtype=bool)
    # A group that is no candidate stays anyway, and so keeps its axis from becoming empty.
    candidate_values = np.where(candidates, values, np.inf)
    seen: set[bytes] = set()
    for groups in [*graph.axes.values(), *(block for b in graph.balance for block in b.blocks)]:
        if not len(groups) or groups.min() < 0:
            continue
        key = groups.tobytes()
        if key not in seen:
            seen.add(key)
            last = len(groups) - 1 - int(candidate_values[groups][::-1].argmax())  # of equal scores the last one stays
            stay[groups[last]] = True
    if len(graph.implied):
        _protect_streams(graph, candidate_values, bounds, stay)
    return stay


def _protect_streams(
    graph: ChannelGraph, candidate_values: npt.NDArray[np.float64], bounds: Limits, stay: npt.NDArray[np.bool_]
) -> None:
    stream, reader = graph.implied[:, 0], graph.implied[:, 1]
    order = np.lexsort((reader, candidate_values[reader]))
    best = np.full(len(graph), -1, dtype=np.int64)
    best[stream[order]] = reader[order]  # the last write wins: the best reader
    streams = np.unique(stream)
    value = candidate_values[best[streams]]
    space = graph.space_of[streams]
    order = np.lexsort((streams, -value, space))
    space = space[order]
    size = np.bincount(space, minlength=len(graph.spaces))
    place = np.arange(len(order)) - (np.cumsum(size) - size)[space]
    stay[best[streams[order][place < bounds.floor[space]]]] = True
    # A balanced stream channel that no reader keeps would be removed and unbalance its structure.
    balanced = np.zeros(len(graph), dtype=bool)
    for structure in graph.balance:
        for block in structure.blocks:
            balanced[block[block >= 0]] = True
    stay[best[streams[balanced[streams] | bounds.ignored[graph.space_of[streams]]]]] = True
