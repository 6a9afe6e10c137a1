"""Channels that a criterion does not rank, as gamma those without a scale: hidden widths of MLPs, attention heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.l1 import l1
from slim.criteria.marginal import marginal

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

WORTH = 0.25  # of the MACs that may go; below it (a classifier's hidden layer, squeeze-excite) they are left alone


def unranked(graph: ChannelGraph, covered: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which channels (n_groups,) may go and have no score, if they are a good part of the network; else none.

    Channels of a stream are not among them: they go with their readers.
    """
    bare = graph.prunable & ~covered
    if len(graph.implied):
        bare[graph.implied[:, 0]] = False
    if bare.any():
        saved = marginal(graph, "macs")
        bare &= saved[bare].sum() >= WORTH * saved[graph.prunable].sum()
    return bare


def unranked_note(graph: ChannelGraph, covered: npt.NDArray[np.bool_], criterion: str) -> tuple[str, ...]:
    """A line that says so where a good part of the network has no score and stays whole, else nothing."""
    bare = unranked(graph, covered)
    if not bare.any():
        return ()
    where = graph.spaces[int(graph.space_of[np.argmax(bare)])].name
    return (
        f"{int(bare.sum())} channel groups have no score by {criterion} and stay, the first in {where}. Rank by another"
        " criterion; weights under a mask of torch.nn.utils.prune are ranked once prune.remove makes them plain.",
    )


def rank_unscaled(
    graph: ChannelGraph, values: npt.NDArray[np.float64], covered: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], str]:
    """Give channels that no scale ranks a place among those that one does, if they are a good part of the network.

    Magnitudes of weights cannot be compared with scales, nor across layers: each layer's channels are ordered by the L1
    norm of their weights, and a channel at the middle of its layer is placed at the middle of all ranked scales. Scales
    of exactly zero are not among these: a law has chosen them, and every channel that lives comes after them.

    Args:
        graph: The network's channels.
        values: (n_groups,) scores.
        covered: (n_groups,) bool, which have one.

    Returns:
        Scores and covered groups with theirs, which of these a ratio counts, and a note that says so; empty when
        nothing was done.
    """
    bare = unranked(graph, covered)
    if not bare.any():
        return values, covered, covered, ""
    magnitude, count = np.zeros(len(graph)), np.zeros(len(graph), dtype=np.int64)
    for groups, norms in l1(graph):
        mine = groups >= 0
        np.add.at(magnitude, groups[mine], np.asarray(norms, dtype=np.float64)[mine])
        np.add.at(count, groups[mine], 1)
    bare &= count > 0
    magnitude /= np.maximum(count, 1)
    ranked = values[graph.prunable & covered]
    scaled = np.sort(ranked[ranked != 0])
    silenced = len(scaled) < len(ranked)  # a law has chosen: what a ratio asks for is a share of its scales
    counted = covered if silenced else covered | bare
    values, covered = values.copy(), covered | bare
    for space in graph.spaces:
        mine = space.groups[bare[space.groups]]
        middle = (np.argsort(np.argsort(magnitude[mine], kind="stable")) + 0.5) / max(1, len(mine))
        values[mine] = np.quantile(scaled, middle) if len(scaled) else middle
    what = "no scale of this network may go" if not len(ranked) else f"{int(bare.sum())} channel groups have no scale"
    ratio = "ratio counts scales alone" if silenced else "ratio counts each of them as one"
    return values, covered, counted, f"{what}: ranked by weight magnitude in their layer; {ratio}."
