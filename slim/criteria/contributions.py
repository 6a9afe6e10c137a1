"""How much each channel adds to what the layers that read it compute, and how these parts overlap: one Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.channels.calls import after_call
from slim.criteria.batches import batches_of, run
from slim.criteria.patches import blocks_of, draw, patches, regresses
from slim.criteria.tensors import in_groups, weights
from slim.errors import expect_whole

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Floats = npt.NDArray[np.float64]
MOST_INPUTS = 8192
"""Inputs of one block of a layer (channels times kernel) beyond which it is not looked at."""


def contributions(
    graph: ChannelGraph, loader: Iterable[Any] | None, batches: int, positions: int, seed: int, *, name: str
) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """Groups (n,) that may go, and A (n, n) float64, over the layers that read just these groups.

    With x[s, o, i] the part of output o at sampled position s that the channels of group i make, A[i, j] is the sum of
    x[s, o, i] * x[s, o, j] over s and o, divided by the energy of all parts together, and summed over the layers. So
    ``b A b`` for a 0/1 vector b is the squared error, relative to the outputs, of leaving the groups in b out.

    Layers of one input channel per output (depthwise) only pass a channel on, and are left out.
    """
    expect_whole("positions", positions, 1, "Set criterion.positions.")
    expect_whole("seed", seed, 0, "Set criterion.seed.")
    found: dict[str, Floats] = {}
    groups_of = readers_of(graph)
    generator = torch.Generator().manual_seed(seed)

    def make_hook(module: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            where = draw(layer, output, positions, generator)
            z = patches(layer, args[0].detach(), output, where).flatten(0, 1).double()
            found[module] = found.get(module, np.zeros(())) + _overlap(layer, z)

        return hook

    handles = [after_call(graph.model.get_submodule(m), make_hook(m)) for m in groups_of]
    try:
        with batches_of(graph, loader, batches, seed, name=name) as read, torch.no_grad():
            for batch in read:
                run(graph.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    together: dict[bytes, tuple[npt.NDArray[np.int64], Floats]] = {}
    for module, overlap in found.items():
        groups, place = np.unique(groups_of[module], return_inverse=True)
        member = np.zeros((len(groups_of[module]), len(groups)))
        member[np.arange(len(place)), place.reshape(-1)] = 1
        free = may_go(graph, groups)
        parts = (member.T @ overlap @ member)[np.ix_(free, free)]
        energy = parts.sum()
        parts = parts / energy if energy > 1e-300 else parts
        key = groups[free].tobytes()
        together[key] = (groups[free], together[key][1] + parts if key in together else parts)
    yield from together.values()


def readers_of(graph: ChannelGraph) -> dict[str, npt.NDArray[np.int64]]:
    """Module to the groups (C_in,) of its inputs, of every layer that has some that may go."""
    found = {}
    for module, weight, dim in weights(graph):
        layer: Any = graph.model.get_submodule(module)
        groups = in_groups(graph, weight, dim)
        if groups is None or not regresses(layer) or not may_go(graph, groups).any():
            continue
        blocks, inputs = blocks_of(layer), layer.weight[0].numel()
        if (blocks == 1 or blocks < len(groups)) and inputs <= MOST_INPUTS:
            found[module] = groups
    return found


def may_go(graph: ChannelGraph, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of ``groups`` (n,) may be removed; -1, fixed, may not."""
    flags = np.append(graph.prunable | graph.inexact, False)  # the last answers for -1
    free: npt.NDArray[np.bool_] = flags[groups]
    return free


def _overlap(layer: Any, z: Tensor) -> Floats:
    """A (C_in, C_in) of one batch from what the layer reads, (S, C_in, K); zero between blocks."""
    blocks, kernel = blocks_of(layer), z.shape[2]
    width = z.shape[1] // blocks
    rows = layer.weight.detach().double().reshape(blocks, -1, width * kernel)
    overlap = np.zeros((z.shape[1], z.shape[1]))
    for block in range(blocks):
        inside = slice(block * width, (block + 1) * width)
        read = z[:, inside].flatten(1)
        both = (read.T @ read) * (rows[block].T @ rows[block])
        overlap[inside, inside] = both.reshape(width, kernel, width, kernel).sum((1, 3)).cpu().numpy()
    return overlap
