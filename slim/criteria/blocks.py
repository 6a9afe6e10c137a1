"""One score per residual branch, for cuts that remove whole blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.scores import Scores
from slim.criteria.tensors import tensor

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def score_blocks(graph: ChannelGraph, scores: Scores) -> npt.NDArray[np.float64]:
    """The score of every branch of ``graph.branches``, (n_branches,); NaN where nothing is known about one.

    With criterion ``gamma`` the mean magnitude of the scales of the branch, its last one included, which no channel
    group has for itself. With others, and in branches without a scale, the mean score of the branch's own channels.
    """
    found = np.full(len(graph.branches), np.nan)
    for i, (branch, inner) in enumerate(graph.branches):
        names = [s.weight for s in graph.scales if s.weight is not None and branch.holds(s.weight)]
        ranked = inner[scores.covered[inner]]
        if scores.criterion == "gamma" and names:
            gammas = [tensor(graph, name).abs().double().cpu().numpy().ravel() for name in names]
            found[i] = np.concatenate(gammas).mean()
        elif len(ranked):
            found[i] = scores.values[ranked].mean()
    return found
