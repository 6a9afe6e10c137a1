"""ThiNet: the channels whose joint absence the next layer notices least. Luo et al. 2017, arXiv:1707.06342."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.criteria.contributions import contributions
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("thinet")
def thinet(
    graph: ChannelGraph, loader: Iterable[Any] | None = None, batches: int = 8, positions: int = 10, seed: int = 0
) -> Evidence:
    """Error in the outputs of the next layer, relative to them, when a channel goes as the next after all below it.

    The greedy set grows by the channel that leaves the least squared error (equation 6), so the first n channels of a
    layer in the order of scores are the paper's set of n. Departures: all outputs at a sampled position count, not
    one drawn at random; the layers that read one residual stream are one problem; and the error compares layers, where
    the paper takes the same share of each.

    Args:
        graph: The network's channels.
        loader: Iterable of batches.
        batches: How many of them.
        positions: Sampled of each image and layer.
        seed: Of the positions, and of all generators while the loader is read.
    """
    for groups, overlap in contributions(graph, loader, batches, positions, seed, name="thinet"):
        scores, last = np.full(len(groups), np.nan), 0.0
        order, error = greedy(overlap) if np.isfinite(overlap).all() else ([], [])
        for channel, after in zip(order, error, strict=True):
            # Parts that cancel can lower the error; the order must stay.
            last = max(after, float(np.nextafter(last, np.inf)))
            scores[channel] = last
        yield groups, scores


def greedy(overlap: npt.NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """The order (n,) in which channels go, and the error (n,) after each, from their overlap (n, n).

    >>> greedy(np.array([[4.0, -3.9, 0], [-3.9, 4, 0], [0, 0, 1]]))[0]
    [2, 0, 1]
    """
    left, order, errors = np.arange(len(overlap)), [], []
    error, cross = 0.0, np.zeros(len(overlap))
    while len(left):
        grown = error + 2 * cross[left] + overlap.diagonal()[left]
        best = int(np.argmin(grown))
        error, channel = float(grown[best]), int(left[best])
        order.append(channel)
        errors.append(max(0.0, error))
        cross += overlap[channel]
        left = np.delete(left, best)
    return order, errors
