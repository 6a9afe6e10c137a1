"""Variance of a BatchNorm's output: a channel that does not vary is a constant, and a constant can be absorbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.criteria.moments import outputs
from slim.criteria.moments import rectified as through_relu
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("bn_variance")
def bn_variance(graph: ChannelGraph, rectified: bool = False) -> Evidence:
    """gamma^2 v / (v + eps), with v the running variance; no data is needed.

    Args:
        graph: The network's channels.
        rectified: Take the variance behind a ReLU instead, the output being Gaussian: what is far below zero is dead.
    """
    for groups, mean, variance in outputs(graph, "bn_variance"):
        yield groups, through_relu(mean, variance)[1] if rectified else variance
