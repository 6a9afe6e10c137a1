"""L1 norm of filters: Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710, section 3.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from slim.criteria.registry import Evidence, criterion
from slim.criteria.tensors import filters, round_significant

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("l1")
def l1(graph: ChannelGraph) -> Evidence:
    """Sum of the absolute weights of the filter that makes a channel; the mean over the layers of a residual stream."""
    for groups, rows in filters(graph):
        yield groups, round_significant(torch.linalg.vector_norm(rows, ord=1, dim=1, dtype=torch.float64))
