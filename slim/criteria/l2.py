"""L2 norm of filters: the variant that Li et al. 2017 (arXiv:1608.08710) compare, and He et al. 2018 (SFP) use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from slim.criteria.registry import Evidence, criterion
from slim.criteria.tensors import filters, round_significant

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("l2")
def l2(graph: ChannelGraph) -> Evidence:
    """Euclidean norm of the filter that makes a channel; the mean over the layers of a residual stream."""
    for groups, rows in filters(graph):
        yield groups, round_significant(torch.linalg.vector_norm(rows, ord=2, dim=1, dtype=torch.float64))
