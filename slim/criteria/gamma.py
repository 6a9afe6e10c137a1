"""The magnitude of a normalization layer's scale: Network Slimming, Liu et al. 2017, arXiv:1708.06519, section 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim.criteria.registry import Evidence, criterion
from slim.criteria.tensors import tensor
from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("gamma")
def gamma(graph: ChannelGraph) -> Evidence:
    """|gamma| of every scale; groups that pass no normalization are not covered.

    The paper ranks single BatchNorms. A group of a residual stream passes several: ``reduce`` decides what they make.
    """
    scales = [(s.groups, s.weight) for s in graph.scales if s.weight is not None]
    if not scales:
        raise SlimError(
            "Criterion gamma ranks the scales of normalization layers. Got a network without any."
            " Set criterion=l1, or add BatchNorm layers to the network."
        )
    for groups, weight in scales:
        yield groups, tensor(graph, weight).abs()
