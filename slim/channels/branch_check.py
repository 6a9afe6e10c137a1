"""Which residual branches of a graph can go: those with channels of their own, whose absence the forward bears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from slim.channels.branches import Branch, replacement
from slim.channels.check import forward_on_meta, inputs_from_spec
from slim.channels.duplicate import duplicate
from slim.channels.ids import IntArray
from slim.channels.meta_forward import call_arguments, tensors_in
from slim.channels.structure import Balance
from slim.channels.trace_record import Axis

MOST_SINGLE = 64  # branches that are tried one by one where they cannot all go


def removable_branches(
    model: nn.Module,
    inputs: Any,
    candidates: Sequence[Branch],
    axes: Mapping[Axis, IntArray],
    count: int,
    balance: Sequence[Balance],
) -> list[tuple[Branch, IntArray]]:
    """Those of ``candidates`` that can go as a whole, each with the groups (n,) that only its parameters have.

    Args:
        model: The traced network; not changed.
        inputs: Specification of its example input (:func:`slim.channels.check.inputs_from_spec`).
        candidates: Branches found in the trace.
        axes: Groups along every parameter axis.
        count: Number of groups of the network.
        balance: Blocks of groups that must lose equally many channels.
    """
    found = []
    for branch in candidates:
        inner = _own_groups(branch, axes, count)
        if len(inner) and _keeps_balance(inner, count, balance):
            found.append((branch, inner))
    expected = _result_shapes(model, inputs, ())
    if _result_shapes(model, inputs, [branch for branch, _ in found]) == expected:
        return found
    return [entry for entry in found[:MOST_SINGLE] if _result_shapes(model, inputs, [entry[0]]) == expected]


def _own_groups(branch: Branch, axes: Mapping[Axis, IntArray], count: int) -> IntArray:
    inside, outside = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for (name, _), groups in axes.items():
        (inside if branch.holds(name) else outside)[groups[groups >= 0]] = True
    return np.flatnonzero(inside & ~outside)


def _keeps_balance(inner: IntArray, count: int, balance: Sequence[Balance]) -> bool:
    """Whether blocks that must lose equally many still do: a split may cut through what a branch has of its own."""
    gone = np.zeros(count, dtype=bool)
    gone[inner] = True
    return all(
        len({int(gone[block[block >= 0]].sum()) for block in each.blocks}) == 1
        or all(gone[block[block >= 0]].all() for block in each.blocks)
        for each in balance
    )


def _result_shapes(model: nn.Module, inputs: Any, gone: Sequence[Branch]) -> list[tuple[int, ...]] | None:
    """Shapes of what the network returns without some branches; None where it does not run."""
    memo: dict[int, Any] = {}
    for branch in gone:
        for name, kind in branch.modules.items():
            memo[id(model.get_submodule(name))] = replacement(kind)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            meta = tensor.detach().to("meta")
            memo[id(tensor)] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
    twin = duplicate(model, memo)
    args, kwargs = call_arguments(inputs_from_spec(inputs))
    try:
        return [tuple(tensor.shape) for tensor in tensors_in(forward_on_meta(twin, args, kwargs))]
    except Exception:
        return None
