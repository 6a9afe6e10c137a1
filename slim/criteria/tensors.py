"""Access to parameters by name, and to the filters that produce a graph's channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def tensor(graph: ChannelGraph, name: str) -> torch.Tensor:
    """The parameter or buffer ``name`` of the graph's model, detached."""
    owner, _, leaf = name.rpartition(".")
    value: torch.Tensor = getattr(graph.model.get_submodule(owner), leaf)
    return value.detach()


def out_dim(module: nn.Module) -> int:
    """The output axis of ``module.weight``; the other one of the first two is the input axis."""
    return 1 if getattr(module, "transposed", False) else 0


def weights(graph: ChannelGraph) -> Iterator[tuple[str, str, int]]:
    """(module, weight name, output axis) of every convolution and linear layer, each weight once, in trace order."""
    seen = set()
    for layer in graph.layers:
        if layer.weight is None or layer.weight in seen:
            continue
        seen.add(layer.weight)
        yield layer.module, layer.weight, out_dim(graph.model.get_submodule(layer.weight.rpartition(".")[0]))


def filters(graph: ChannelGraph) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """(groups (C,), rows (C, K) float32) for every layer that produces channels: one row of weights per channel."""
    for _, name, dim in weights(graph):
        groups = out_groups(graph, name, dim)
        if groups is not None and (groups >= 0).any():
            weight = tensor(graph, name).float()
            yield groups, rows_of(weight, dim, len(groups))


def rows_of(weight: torch.Tensor, dim: int, channels: int) -> torch.Tensor:
    """``weight`` as (channels, K). A grouped transposed convolution (C_in, C_out / groups, ...) is unfolded first."""
    if dim == 0:
        return weight.flatten(1) if weight.ndim > 1 else weight[:, None]
    per_block = weight.shape[1]
    blocks = channels // per_block
    return weight.reshape(blocks, -1, per_block, weight[0, 0].numel()).transpose(1, 2).reshape(channels, -1)


def round_significant(values: torch.Tensor) -> torch.Tensor:
    """``values`` (float64) to ten significant digits.

    The last bits of a sum depend on the order in which a machine adds; the ranking must not.

    >>> round_significant(torch.tensor([1 / 3, 0.0], dtype=torch.float64)).tolist()
    [0.3333333333, 0.0]
    """
    scale = 10.0 ** (9 - values.abs().clamp_min(1e-300).log10().floor())
    return torch.where(values.isfinite() & (values != 0), (values * scale).round() / scale, values)


def out_groups(graph: ChannelGraph, weight: str, dim: int) -> npt.NDArray[np.int64] | None:
    """The channel group of every output of ``weight``, (C_out,), or None when the axis is not in the graph."""
    for axis, groups in _axes_of(graph, weight):
        if axis == dim:
            return groups
    return None


def in_groups(graph: ChannelGraph, weight: str, dim: int) -> npt.NDArray[np.int64] | None:
    """The channel group of every input of ``weight``, (C_in,), given its output axis ``dim``."""
    return out_groups(graph, weight, 1 - dim)


def _axes_of(graph: ChannelGraph, weight: str) -> list[tuple[int, npt.NDArray[np.int64]]]:
    axes = []
    for dim in (0, 1):
        groups = graph.axes.get((weight, dim))  # type: ignore[call-overload]
        if groups is not None:
            axes.append((dim, groups))
    return axes
