"""Average percentage of zeros: Hu et al. 2016, Network Trimming, arXiv:1607.03250."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from slim.criteria.layer_inputs import mean_layer_input
from slim.criteria.registry import Evidence, criterion

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("apoz")
def apoz(graph: ChannelGraph, loader: Iterable[Any] | None = None, batches: int = 8, seed: int = 0) -> Evidence:
    """One minus the share of zeros (equation 1) of the channel as the next layer receives it.

    It only distinguishes channels behind activations with exact zeros, such as ReLU.
    """
    return mean_layer_input(graph, loader, batches, seed, name="apoz", measure=lambda x: x != 0)
