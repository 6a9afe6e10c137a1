"""Statistics of the inputs of convolution and linear layers, per channel group: the values behind activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.channels.calls import before_call
from slim.criteria.batches import batches_of, run
from slim.criteria.registry import Evidence
from slim.criteria.tensors import in_groups, weights

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def mean_layer_input(
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
    groups_of: dict[str, npt.NDArray[np.int64]] = {}
    for module, weight, dim in weights(graph):
        groups = in_groups(graph, weight, dim)
        if groups is not None and (groups >= 0).any():
            groups_of[module] = groups
    sums = {m: torch.zeros(len(g), dtype=torch.float64) for m, g in groups_of.items()}
    counts = dict.fromkeys(groups_of, 0)

    def make_hook(module: str, dim: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            if x.shape[dim] == len(groups_of[module]):
                rest = [d for d in range(x.ndim) if d != dim % x.ndim]
                sums[module] += measure(x).sum(rest, dtype=torch.float64).cpu()
                counts[module] += x.numel() // x.shape[dim]

        return hook

    handles = []
    try:
        for module in groups_of:
            layer = graph.model.get_submodule(module)
            handles.append(before_call(layer, make_hook(module, -1 if isinstance(layer, nn.Linear) else 1)))
        with batches_of(graph, loader, batches, seed, name=name) as read, torch.no_grad():
            for batch in read:
                run(graph.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for module, groups in groups_of.items():
        if counts[module]:
            yield groups, sums[module] / counts[module]
