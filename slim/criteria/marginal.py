"""MACs or parameters saved by removing one channel group, for all groups at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Ints = npt.NDArray[np.int64]
# A product of widths: a constant, and (groups on an axis, divisor of its width) per factor.
Product = tuple[float, Sequence[tuple[Ints, int]]]


def marginal(graph: ChannelGraph, cost: str) -> npt.NDArray[np.float64]:
    """MACs (``cost="macs"``) or parameters (``"params"``) that removing each group alone saves, (n_groups,) float64.

    Where a group may not go alone (grouped convolutions) this is its part of what its set saves, to first order.
    """
    saved = np.zeros(len(graph))
    for constant, factors in _macs(graph) if cost == "macs" else _params(graph):
        _save(saved, constant, factors)
    return saved


def _save(saved: npt.NDArray[np.float64], constant: float, factors: Sequence[tuple[Ints, int]]) -> None:
    """Add the decrease of ``constant * prod(width / per)`` when each group alone is removed."""
    if not factors:
        return
    present = np.concatenate(sorted((g for g, _ in factors), key=lambda g: g[:1].tolist()))
    present = present[present >= 0]
    if not (present[1:] > present[:-1]).all():  # most often the groups along one axis come before those along another
        present = np.unique(present)
    dense, without = float(constant), np.full(len(present), float(constant))
    for groups, per in factors:
        place = np.searchsorted(present, groups[groups >= 0])
        count = np.bincount(place, minlength=len(present))
        dense *= len(groups) / per
        without *= (len(groups) - count) / per
    saved[present] += dense - without


def _macs(graph: ChannelGraph) -> Iterator[Product]:
    for layer in graph.layers:
        yield layer.factor, layer.terms


def _params(graph: ChannelGraph) -> Iterator[Product]:
    axes: dict[str, list[tuple[int, Ints]]] = {}
    for (name, dim), groups in graph.axes.items():
        axes.setdefault(name, []).append((dim, groups))
    for name, parameter in graph.model.named_parameters():
        size = parameter.numel()
        factors = []
        for dim, groups in axes.get(name, []):
            per = graph.grouped.get(name, 1) if dim == 1 else 1
            # A convolution whose group count follows the width keeps its channels per group.
            if (groups < 0).all() or (per > 1 and name.rpartition(".")[0] in graph.regroup):
                continue
            factors.append((groups, per))
            size //= parameter.shape[dim]
        yield size, factors
