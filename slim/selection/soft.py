"""Soft pruning: scale down the selected channels, keep training, let them recover. He et al. 2018, arXiv:1808.06866."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from slim.criteria.tensors import out_groups, weights

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@torch.no_grad()
def soften(graph: ChannelGraph, removed: npt.NDArray[np.bool_], leak: float = 1e-3) -> int:
    """Scale gamma and beta of the ``removed`` groups by ``leak``, in the graph's model; else filter and bias.

    A departure from the paper, which sets filters to zero: at exactly zero a ReLU passes no gradient, and the
    channel cannot recover (in a network whose shifts are zero, none could). Scaled by a leak, a channel contributes
    almost nothing and yet is active on the same samples as before, so that its gradients can restore it.

    Returns:
        How many channels were scaled; one of a residual stream counts in each of its layers.
    """
    named = dict(graph.model.named_parameters(remove_duplicate=False))
    scaled = np.zeros(len(graph), dtype=bool)
    count = 0
    for scale in graph.scales:
        if scale.weight is not None:
            scaled[scale.groups[scale.groups >= 0]] = True
            count += _shrink(named[scale.weight], 0, scale.groups, removed, leak)
            if scale.bias is not None:
                _shrink(named[scale.bias], 0, scale.groups, removed, leak)
    rest = removed & ~scaled
    if rest.any():
        for module, weight, dim in weights(graph):
            groups = out_groups(graph, weight, dim)
            # A grouped transposed convolution stores its outputs per block: it has no plain row to scale.
            if groups is None or len(groups) != named[weight].shape[dim]:
                continue
            count += _shrink(named[weight], dim, groups, rest, leak)
            bias = named.get(f"{module}.bias")
            if bias is not None:
                _shrink(bias, 0, groups, rest, leak)
    return count


def _shrink(
    parameter: torch.Tensor, dim: int, groups: npt.NDArray[np.int64], removed: npt.NDArray[np.bool_], leak: float
) -> int:
    gone = (groups >= 0) & removed[groups]
    factor = torch.where(torch.from_numpy(gone), leak, 1.0).to(parameter)
    shape = [1] * parameter.ndim
    shape[dim] = len(factor)
    parameter.mul_(factor.view(shape))
    return int(gone.sum())
