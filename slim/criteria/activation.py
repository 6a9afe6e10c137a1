"""Mean absolute activation: Molchanov et al. 2017 (arXiv:1611.06440, section 2.2) call it a minimal criterion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from slim.criteria.layer_inputs import mean_layer_input
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("activation")
def activation(graph: ChannelGraph, loader: Iterable[Any] | None = None, batches: int = 8, seed: int = 0) -> Evidence:
    """Mean of |a| over samples and positions, where ``a`` is the channel as the next layer receives it."""
    return mean_layer_input(graph, loader, batches, seed, name="activation", measure=lambda x: x.abs())
