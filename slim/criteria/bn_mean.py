"""Mean of a BatchNorm's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.criteria.norm_moments import output_moments, relu_moments
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("bn_mean")
def bn_mean(graph: ChannelGraph, rectified: bool = False) -> Evidence:
    """|beta|: the output's running mean is the shift; no data are needed.

    Args:
        graph: The network's channels.
        rectified: Take the mean behind a ReLU instead, the output being Gaussian with variance gamma^2 v / (v + eps).
    """
    for groups, mean, variance in output_moments(graph, "bn_mean"):
        yield groups, relu_moments(mean, variance)[0] if rectified else mean.abs()
