"""Make scores of different layers comparable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slim.criteria.marginal import marginal
from slim.errors import SlimError, nearest

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

NORMALIZATIONS = ("none", "max", "mean", "standard", "per_mac", "per_param")
Floats = npt.NDArray[np.float64]


def normalize_scores(graph: ChannelGraph, values: Floats, covered: npt.NDArray[np.bool_], how: str) -> Floats:
    """``values`` (n_groups,) after normalization.

    ``max`` and ``mean`` divide by that of the layer (Molchanov 2017 divides by the l2 norm of the layer);
    ``standard`` subtracts the layer's mean and divides by its standard deviation; ``per_mac`` and ``per_param``
    divide by the MACs or parameters that removing the group from the dense network saves.

    Raises:
        SlimError: Unknown normalization.
    """
    if how not in NORMALIZATIONS:
        raise SlimError(
            f"normalize must be one of {', '.join(NORMALIZATIONS)}. Got normalize={how!r}."
            f" {nearest(str(how), NORMALIZATIONS)} Set criterion.normalize."
        )
    if how == "none":
        return values
    if how in ("per_mac", "per_param"):
        saved = np.maximum(marginal(graph, "macs" if how == "per_mac" else "params"), 1.0)
        return np.where(covered, values / saved * saved[covered].mean(), 0.0)
    n_spaces = len(graph.spaces)
    space = graph.space_of
    divisor: npt.NDArray[np.float64]
    count = np.maximum(np.bincount(space[covered], minlength=n_spaces), 1)
    if how == "max":
        divisor = np.zeros(n_spaces)
        np.maximum.at(divisor, space[covered], np.abs(values[covered]))
        shift = np.zeros(n_spaces)
    else:
        mean = np.bincount(space[covered], values[covered], minlength=n_spaces) / count
        if how == "mean":
            divisor, shift = np.abs(mean), np.zeros(n_spaces)
        else:
            square = np.bincount(space[covered], (values - mean[space])[covered] ** 2, minlength=n_spaces) / count
            divisor, shift = np.sqrt(square), mean
    # A layer of equal values (all zero, or one channel) has no spread to divide by.
    divisor = np.where(divisor > 0, divisor, 1.0)
    return np.where(covered, (values - shift[space]) / divisor[space], 0.0)
