"""CHIP: feature maps that the other maps do not span. Sui et al. 2021, arXiv:2110.13981."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slim.channels.calls import before_call
from slim.criteria.batches import batches_of, run
from slim.criteria.contributions import may_go
from slim.criteria.registry import Evidence, criterion
from slim.criteria.tensors import in_groups, weights
from slim.errors import expect_whole

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("chip")
def chip(
    graph: ChannelGraph, loader: Iterable[Any] | None = None, batches: int = 8, images: int = 64, seed: int = 0
) -> Evidence:
    """Channel independence: nuclear norm of a layer's maps less that without the channel (equation 3), averaged.

    The maps are those that the next layer reads, behind the activation.

    Args:
        graph: The network's channels.
        loader: Iterable of batches.
        batches: How many of them, at most.
        images: How many of them all.
        seed: Of all generators while the loader is read.
    """
    expect_whole("images", images, 1, "Set criterion.images.")
    groups_of = {}
    for module, weight, dim in weights(graph):
        groups = in_groups(graph, weight, dim)
        if groups is not None and may_go(graph, groups).any():
            groups_of[module] = groups
    sums = {module: torch.zeros(len(groups), dtype=torch.float64) for module, groups in groups_of.items()}
    seen = dict.fromkeys(groups_of, 0)
    left = images

    def make_hook(module: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()[:left]
            x = x.movedim(-1, 1) if isinstance(layer, nn.Linear) else x
            if x.shape[1] == len(sums[module]):
                seen[module] += len(x)
                for maps in x.flatten(2) if x.dim() > 2 else x[:, :, None]:
                    sums[module] += independence(maps).cpu()

        return hook

    handles = [before_call(graph.model.get_submodule(m), make_hook(m)) for m in groups_of]
    try:
        with batches_of(graph, loader, batches, seed, name="chip") as read, torch.no_grad():
            for batch in read:
                run(graph.model, batch)
                left -= min(left, batch.size)
                if not left:
                    break
    finally:
        for handle in handles:
            handle.remove()
    for module, groups in groups_of.items():
        if seen[module]:
            yield groups, sums[module] / seen[module]


def independence(maps: Tensor) -> Tensor:
    """Of each of the rows of ``maps`` (C, P): |maps|_* - |maps without the row|_*, (C,) float64.

    Singular values are the roots of the eigenvalues of the smaller Gram matrix.

    >>> independence(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])).round(decimals=6).tolist()
    [3.0, 4.0, 0.0]
    """
    x = maps.double()
    count, size = x.shape
    if not x.isfinite().all():
        return x.new_full((count,), float("nan"))
    if size < count:
        whole = x.T @ x
        each = whole - x[:, :, None] * x[:, None, :]
    else:
        whole = x @ x.T
        others = 1 - torch.eye(count, dtype=x.dtype, device=x.device)
        each = whole * others[:, :, None] * others[:, None, :]

    return _nuclear(whole) - torch.cat([_nuclear(each[i : i + 64]) for i in range(0, count, 64)])


def _nuclear(gram: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp_min(0).sqrt().sum(-1)
