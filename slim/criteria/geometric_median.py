"""Filters close to the geometric median of their layer are redundant: FPGM, He et al. 2019, arXiv:1811.00250."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from slim.criteria.registry import Evidence, criterion
from slim.criteria.tensors import filters, round_significant

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("geometric_median")
def geometric_median(graph: ChannelGraph) -> Evidence:
    """Sum of a filter's distances to the other filters of its layer (equation 6)."""
    for groups, rows in filters(graph):
        # Distances by differences, not by the expanded square: near-equal filters are the ones that matter.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        yield groups, round_significant(distances.sum(1, dtype=torch.float64))
