"""Which residual branches of a graph can go: those with channels of their own, whose absence the forward bears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from slim.channels.branches import Branch, find_branches, replacement
from slim.channels.duplicate import duplicate
from slim.channels.ids import IntArray
from slim.channels.meta_forward import call_arguments, temporary_state, tensors_in
from slim.channels.surgery import inputs_from_spec, on_meta

if TYPE_CHECKING:
    from slim.channels.graph import ChannelGraph

MOST_SINGLE = 64  # branches that are tried one by one where they cannot all go


def removable_branches(graph: ChannelGraph) -> list[tuple[Branch, IntArray]]:
    """Every branch that can go, and the groups that only its parameters have, (n,).

    None in a network whose streams are read selectively (``residual="select"``), or that only runs on real values.
    """
    if graph.inputs is None or len(graph.implied) or graph.selects:
        return []
    found = []
    for branch in find_branches(graph.model, graph.operations, graph.results, graph.returned):
        inner = _own_groups(graph, branch)
        if len(inner) and _keeps_balance(graph, inner):
            found.append((branch, inner))
    expected = _result_shapes(graph, ())
    if _result_shapes(graph, [branch for branch, _ in found]) == expected:
        return found
    return [entry for entry in found[:MOST_SINGLE] if _result_shapes(graph, [entry[0]]) == expected]


def _own_groups(graph: ChannelGraph, branch: Branch) -> IntArray:
    inside, outside = np.zeros(graph.count, dtype=bool), np.zeros(graph.count, dtype=bool)
    for (name, _), groups in graph.axes.items():
        (inside if branch.holds(name) else outside)[groups[groups >= 0]] = True
    return np.flatnonzero(inside & ~outside)


def _keeps_balance(graph: ChannelGraph, inner: IntArray) -> bool:
    """Whether blocks that must lose equally many still do: a split may cut through what a branch has of its own."""
    gone = np.zeros(graph.count, dtype=bool)
    gone[inner] = True
    return all(
        len({int(gone[block[block >= 0]].sum()) for block in balance.blocks}) == 1
        or all(gone[block[block >= 0]].all() for block in balance.blocks)
        for balance in graph.balance
    )


def _result_shapes(graph: ChannelGraph, gone: Sequence[Branch]) -> list[tuple[int, ...]] | None:
    """Shapes of what the network returns without some branches; None where it does not run."""
    memo: dict[int, Any] = {}
    for branch in gone:
        for name, kind in branch.modules.items():
            memo[id(graph.model.get_submodule(name))] = replacement(kind)
    for tensor in (*graph.model.parameters(), *graph.model.buffers()):
        if tensor.is_floating_point():
            meta = tensor.detach().to("meta")
            memo[id(tensor)] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
    twin = duplicate(graph.model, memo)
    args, kwargs = call_arguments(inputs_from_spec(graph.inputs))
    try:
        with torch.no_grad(), temporary_state(twin, meta=True, training=False), on_meta():
            return [tuple(tensor.shape) for tensor in tensors_in(twin(*args, **kwargs))]
    except Exception:
        return None
