"""Variance of a BatchNorm's output: a channel that does not vary is a constant, and a constant can be absorbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.criteria.norm_moments import output_moments, relu_moments
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("bn_variance")
def bn_variance(graph: ChannelGraph, rectified: bool = False) -> Evidence:
    """gamma^2 v / (v + eps), with v the running variance; no data are needed.

    Args:
        graph: The network's channels.
        rectified: Take the variance behind a ReLU instead, the output being Gaussian: what is far below zero is dead.
    """
    for groups, mean, variance in output_moments(graph, "bn_variance"):
        yield groups, relu_moments(mean, variance)[1] if rectified else variance
