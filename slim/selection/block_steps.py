"""Whole residual branches as removal steps, alone or among the channels' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.blocks import score_blocks
from slim.criteria.scores import Scores
from slim.selection.limits import Limits
from slim.selection.removal_steps import RemovalSteps

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

GRANULARITIES = ("channel", "layer", "both")
Ints = npt.NDArray[np.int64]


def with_blocks(
    graph: ChannelGraph, scores: Scores, steps: RemovalSteps, bounds: Limits
) -> tuple[RemovalSteps, list[Ints]]:
    """Add one step per branch that may go.

    Returns:
        The steps, those of branches last, and the groups (n,) that each of these removes.
    """
    values = score_blocks(graph, scores)
    usable = [
        i
        for i, (_, inner) in enumerate(graph.branches)
        if np.isfinite(values[i]) and not bounds.ignored[graph.space_of[inner]].any()
    ]
    blocks = [graph.branches[i][1] for i in usable]
    # At the end of its layers' order: a layer with a ratio of its own keeps its block.
    steps = RemovalSteps(
        of=steps.of,
        value=np.concatenate([steps.value, values[usable]]),
        share=np.concatenate([steps.share, np.ones(len(blocks))]),
        space=np.concatenate([steps.space, [graph.space_of[b[0]] for b in blocks]]).astype(np.int64),
        family=np.concatenate([steps.family, len(graph.spaces) + np.arange(len(blocks))]).astype(np.int64),
        index=np.concatenate([steps.index, [b[0] for b in blocks]]).astype(np.int64),
        notes=steps.notes,
    )
    return steps, blocks
