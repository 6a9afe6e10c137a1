"""Channel Pruning: channels that a LASSO needs to say what the next layer says. He et al. 2017, arXiv:1707.06168."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.criteria.contributions import contributions
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("channel_pruning")
def channel_pruning(
    graph: ChannelGraph, loader: Iterable[Any] | None = None, batches: int = 8, positions: int = 10, seed: int = 0
) -> Evidence:
    """The largest penalty under which a channel is used, relative to the energy of the next layer's outputs.

    min |Y - sum_c b_c x_c|^2 / 2 + lam * |b|_1 (equation 2), x_c the part of the outputs Y that channel c makes. The
    paper raises lam until few enough b_c are not zero; here the whole path is computed at once (LARS, exact), and a
    channel's score is the lam at which it enters. The paper's second half, new weights for the channels that stay, is
    :func:`slim.recovery.least_squares`, for any criterion.

    Args:
        graph: The network's channels.
        loader: Iterable of batches.
        batches: How many of them.
        positions: Sampled of each image and layer.
        seed: Of the positions, and of all generators while the loader is read.
    """
    for groups, overlap in contributions(graph, loader, batches, positions, seed, name="channel_pruning"):
        yield groups, entries(overlap) if np.isfinite(overlap).all() else np.full(len(groups), np.nan)


def entries(overlap: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The penalty (n,) at which each channel enters, from their overlap (n, n); 0: others say all that it says.

    The regression over all samples is that over n: of X with X'X = overlap, and Y = X 1.

    >>> entries(np.diag([1.0, 4.0, 0.0])).round(6).tolist()
    [1.0, 4.0, 0.0]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path

    values, vectors = np.linalg.eigh(overlap)
    x = np.sqrt(values.clip(0))[:, None] * vectors.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # channels that others span are dropped
        alphas, _, path = lars_path(x, x.sum(1), method="lasso", max_iter=20 * len(x) + 100)
    used = path != 0
    first = used.argmax(1)
    return np.where(used.any(1), alphas[np.maximum(first - 1, 0)] * len(x), 0.0)
