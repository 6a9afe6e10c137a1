"""The scales a law acts on: every gamma (and beta) listed in the graph, as flat aligned lists.

Laws never loop over layers. They see either ``weights``, a list for ``torch._foreach_*``, or one concatenated vector
``flat()`` whose entries are aligned with ``groups`` (channel group of every entry).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

IntArray = npt.NDArray[np.int64]
NORMS = ("batch", "all")


class Gammas:
    """Trainable scales of the normalization layers, in the graph's order.

    Attributes:
        names: full parameter name of every gamma.
        weights: the gammas, each ``(C_i,)``. The parameters of the model themselves, not copies.
        biases: the betas that exist and train, each ``(C_j,)``.
        sizes: ``C_i`` of every gamma; their sum is N, the length of a flat vector.
        groups: int64 ``(N,)``, channel group of every entry, -1 where it belongs to none.
        bias_entries: int64 ``(M,)``, flat position of every entry of the concatenated betas.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[Tensor], biases: Sequence[Tensor | None],
                 groups: Sequence[IntArray]) -> None:  # fmt: skip
        self.names = list(names)
        self.weights = list(weights)
        self.sizes = [w.numel() for w in self.weights]
        self.groups = np.concatenate(groups).astype(np.int64)
        starts = np.cumsum([0, *self.sizes])
        self.layers = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.biases = [b for b in biases if b is not None]
        spans = [np.arange(s, s + n) for b, s, n in zip(biases, starts, self.sizes, strict=False) if b is not None]
        self.bias_entries = np.concatenate(spans) if spans else np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Entries of a flat vector."""
        return len(self.groups)

    @property
    def device(self) -> torch.device:
        """Device of the gammas."""
        return self.weights[0].device

    @property
    def bias_index(self) -> Tensor | slice:
        """Index of ``bias_entries`` in a flat vector; a slice (no copy) where every layer has a beta."""
        if len(self.bias_entries) == len(self):
            return slice(None)
        return torch.as_tensor(self.bias_entries, device=self.device)

    def flat(self) -> Tensor:
        """All gammas as one detached vector ``(N,)`` (a copy)."""
        return torch.cat([w.detach() for w in self.weights])

    def views(self, flat: Tensor) -> list[Tensor]:
        """A flat vector ``(N,)`` as views shaped like ``weights``."""
        return list(torch.split(flat, self.sizes))

    def bias_views(self, flat: Tensor) -> list[Tensor]:
        """A vector over ``bias_entries`` as views shaped like ``biases``."""
        return list(torch.split(flat, [b.numel() for b in self.biases]))


def check_norms(norms: str) -> None:
    """Refuse what is not one of :data:`NORMS`, when a law is made and no network is there yet.

    Raises:
        SlimError: It is not.
    """
    if norms not in NORMS:
        raise SlimError(f"norms must be one of {', '.join(NORMS)}. Got norms={norms}. Set penalty.norms.")


def collect_gammas(
    model: nn.Module, graph: ChannelGraph, *, norms: str = "batch", prunable_only: bool = False
) -> Gammas:
    """Find the scales of ``model`` through ``graph.scales``; frozen ones (``requires_grad=False``) are left alone.

    Args:
        model: the network that trains (its parameters are used, not those of ``graph.model``).
        graph: trace of a network with the same parameter names and shapes.
        norms: ``batch`` takes BatchNorm's scales, ``all`` every normalization scale listed in the graph.
        prunable_only: leave out layers in which no channel may ever be removed.

    Raises:
        SlimError: nothing is left to act on, or the graph belongs to another network.
    """
    check_norms(norms)
    names, weights, biases, groups, seen = [], [], [], [], set()
    frozen = 0
    for scale in graph.scales:
        if scale.weight is None or (norms == "batch" and not _is_batch_norm(model, scale.module)):
            continue
        weight = _parameter(model, scale.weight)
        if weight.numel() != len(scale.groups):
            raise SlimError(
                f"the graph must be traced from this network. Got {scale.weight} with {weight.numel()} channels and "
                f"{len(scale.groups)} in the graph. Trace it again after a rebuild."
            )
        inside = scale.groups[scale.groups >= 0]
        if prunable_only and not graph.prunable[inside].any():
            continue
        if not weight.requires_grad:
            frozen += 1
            continue
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        bias = _parameter(model, scale.bias) if scale.bias is not None else None
        names.append(scale.weight)
        weights.append(weight)
        biases.append(bias if bias is not None and bias.requires_grad else None)
        groups.append(np.asarray(scale.groups))
    if not weights:
        raise SlimError(
            f"a penalty needs a normalization layer with a trainable scale. Got 0 of {len(graph.scales)} "
            f"({frozen} frozen, norms={norms}). Unfreeze one, set penalty.norms=all, or prune by another criterion."
        )
    return Gammas(names, weights, biases, groups)


def gamma_parameters(graph: ChannelGraph, model: nn.Module | None = None) -> list[nn.Parameter]:
    """Every normalization scale listed in the graph, frozen ones included, e.g. for a parameter group of their own."""
    model = graph.model if model is None else model
    scales = [_parameter(model, s.weight) for s in graph.scales if s.weight is not None]
    return list({id(p): p for p in scales}.values())


def member_table(groups: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Entries of each group as one padded index table, so that a sum over groups is a gather and a row sum.

    A scatter (``index_add_``) would be shorter, but it adds in any order on a GPU and so does not resume bit-exactly.

    Args:
        groups: int64 ``(N,)``; every -1 becomes a group of its own.

    Returns:
        ``table`` ``(G, K)`` of flat positions, padded with N; ``index`` ``(N,)``, row of every entry; ``counts``
        ``(G,)``.
    """
    own = groups.copy()
    loose = np.flatnonzero(own < 0)
    own[loose] = (own.max(initial=-1) + 1) + np.arange(len(loose))
    _, index, counts = np.unique(own, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    column = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), int(counts.max(initial=1))), len(own), np.int64)
    table[index[order], column] = order
    return table, index.astype(np.int64), counts


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    try:
        return model.get_parameter(name)
    except AttributeError:
        raise SlimError(
            f"the graph must be traced from this network. Got {name}, unknown to {type(model).__name__}. "
            "Trace the network you train."
        ) from None


def _is_batch_norm(model: nn.Module, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), nn.modules.batchnorm._BatchNorm)
    except AttributeError:
        return False
