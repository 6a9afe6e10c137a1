"""What consumers see: every convolution and linear layer knows the group of each of its inputs, behind activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.criteria.batches import batches_of
from slim.criteria.registry import Evidence
from slim.criteria.tensors import in_groups, weights

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def mean_incoming(
    graph: ChannelGraph,
    loader: Iterable[Any] | None,
    batches: int,
    seed: int,
    *,
    name: str,
    measure: Callable[[Tensor], Tensor],
) -> Evidence:
    """Mean of ``measure(activation)`` (elementwise) over samples and positions, per input channel of every layer.

    Yields:
        (groups (C_in,), means (C_in,)) per layer that was called.
    """
    places: dict[str, npt.NDArray[np.int64]] = {}
    for module, weight, dim in weights(graph):
        groups = in_groups(graph, weight, dim)
        if groups is not None and (groups >= 0).any():
            places[module] = groups
    sums = {m: torch.zeros(len(g), dtype=torch.float64) for m, g in places.items()}
    counts = dict.fromkeys(places, 0)

    def ahead(module: str, dim: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            if x.shape[dim] == len(places[module]):
                rest = [d for d in range(x.ndim) if d != dim % x.ndim]
                sums[module] += measure(x).sum(rest, dtype=torch.float64).cpu()
                counts[module] += x.numel() // x.shape[dim]

        return hook

    handles = []
    try:
        for module in places:
            layer = graph.model.get_submodule(module)
            handles.append(layer.register_forward_pre_hook(ahead(module, -1 if isinstance(layer, nn.Linear) else 1)))
        with batches_of(graph, loader, batches, seed, name=name) as read, torch.no_grad():
            for batch in read:
                graph.model(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for module, groups in places.items():
        if counts[module]:
            yield groups, sums[module] / counts[module]
