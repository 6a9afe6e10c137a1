"""Residual branches: what stands between a stream and the sum that adds to it, and can go as a whole.

A forward is a graph of operations. At every sum of a stream and something computed from it, the operations that serve
this summand alone are the branch. Its modules are replaced by :class:`Zero` (one whose silence makes the summand zero)
and :class:`Pass` (the others), so that the rebuilt network leaves the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OUTPUT = -1  # consumes what the network returns
PASSES_ZERO = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "clone", "alias"),
        *("detach", "_to_copy", "slice", "select", "squeeze", "unsqueeze", "split", "split_with_sizes", "unbind"),
        *("native_dropout", "dropout", "relu", "relu6", "gelu", "silu", "tanh", "neg", "hardswish", "leaky_relu"),
        *("elu", "mean", "sum", "div", "avg_pool2d", "_adaptive_avg_pool2d", "roll", "flip", "contiguous"),
        *("upsample_nearest2d", "upsample_bilinear2d"),
    )
)
TURNS = frozenset(["t", "transpose", "permute"])
PRODUCTS = frozenset(["mm", "bmm", "addmm", "baddbmm", "addbmm", "matmul", "linear", "dot", "mv"])
MAKES_ZERO = frozenset(["convolution", "_convolution", "mm", "addmm", "linear", "native_layer_norm"])


def operation_name(func: Any) -> str:
    """Name of an operation, without its overload; one that is not PyTorch's own has its library's before it."""
    name: str = func.overloadpacket.__name__
    return name if func.namespace == "aten" else f"{func.namespace}::{name}"


class Operation(NamedTuple):
    """One operation of a forward: what it reads, in which modules (innermost first), and its results' shapes."""

    name: str
    parents: tuple[int, ...]
    params: tuple[str, ...]
    modules: tuple[str, ...]
    shape: tuple[int, ...]
    others: tuple[tuple[int, ...], ...] = ()  # shapes of the results after the first


@dataclass(frozen=True)
class Branch:
    """A branch that can go: ``modules`` maps the modules to replace to ``pass``, ``zero`` or ``zero+n``."""

    name: str
    modules: Mapping[str, str]

    def holds(self, name: str) -> bool:
        """Whether a module, parameter or buffer of this name is part of the branch."""
        return any(name == m or name.startswith(f"{m}.") for m in self.modules)


class Pass(nn.Module):
    """Returns its first argument: what is left of a module in a branch that is gone."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A copy of ``x``: an activation that works in place may follow, and ``x`` may be the stream."""
        return x.clone()


class Zero(nn.Module):
    """Returns zeros like its first tensor, and ``extra`` times None: the end of a branch that is gone."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the first tensor's shape and dtype."""
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        zeros = torch.zeros_like(x)
        return (zeros, *[None] * self.extra) if self.extra else zeros


def is_original(parameter: str) -> bool:
    """Whether the parameter of this name is one that PyTorch computes a weight from (weight_norm, spectral_norm)."""
    return "parametrizations." in parameter or parameter.endswith(("weight_g", "weight_v"))


def replacement(kind: str) -> nn.Module:
    """The module that a plan's word stands for.

    Raises:
        ValueError: it is none of ``pass``, ``zero``, ``zero+n``.
    """
    word, _, extra = kind.partition("+")
    if word == "pass" and not extra:
        return Pass()
    if word == "zero" and (not extra or (extra.isdigit() and 0 < int(extra) < 16)):
        return Zero(int(extra or 0))
    raise ValueError(f"a replacement {kind[:20]!r}")


def find_branches(
    model: nn.Module, operations: Sequence[Operation], results: Mapping[str, list[tuple[int, int]]], outputs: set[int]
) -> Iterator[Branch]:
    """Every branch of a traced forward.

    Args:
        model: The network.
        operations: Its forward's, in order.
        results: Per module the operation that made its (first) result, and how many None follow it, per call; a
            negative operation where the result is something else.
        outputs: Operations whose results the network returns.
    """
    readers: list[set[int]] = [set() for _ in operations]
    for i, operation in enumerate(operations):
        for parent in operation.parents:
            readers[parent].add(i)
    for i in outputs:
        readers[i].add(OUTPUT)
    inside = _operations_of(operations, readers)
    silences = _silences(operations)
    taken: set[str] = set()
    for i, operation in enumerate(operations):
        if operation.name.rstrip("_") != "add" or len(operation.parents) != 2:
            continue
        for stream, summand in (operation.parents, operation.parents[::-1]):
            same = operations[stream].shape == operations[summand].shape == operation.shape
            if not same or readers[summand] != {i}:
                continue
            members = _exclusive(operations, readers, summand)
            if stream in members or not any(stream in operations[m].parents for m in members):
                continue
            branch = _branch(model, operations, results, inside, silences[summand], members)
            if branch is not None and not taken & set(branch.modules):
                taken |= set(branch.modules)
                yield branch
                break


def _exclusive(operations: Sequence[Operation], readers: list[set[int]], last: int) -> set[int]:
    """``last`` and all operations that nothing but it reads, directly or not."""
    members = {last}
    for i in range(last - 1, -1, -1):
        if readers[i] and readers[i] <= members:
            members.add(i)
    return {m for m in members if operations[m].name != "input"}


def _operations_of(operations: Sequence[Operation], readers: list[set[int]]) -> dict[str, set[int]]:
    """Per module the operations of its forwards whose results somebody reads."""
    inside: dict[str, set[int]] = {}
    for i, operation in enumerate(operations):
        for name in operation.modules if readers[i] else ():
            inside.setdefault(name, set()).add(i)
    return inside


def _silences(operations: Sequence[Operation]) -> list[frozenset[int]]:
    """Per operation, the operations whose zero result makes its result zero."""
    found: list[frozenset[int]] = []
    for i, operation in enumerate(operations):
        mine: frozenset[int] = frozenset((i,))
        name = operation.name.rstrip("_")
        if name == "mul":
            mine = mine.union(*(found[p] for p in operation.parents))
        elif operation.parents and (
            (name in PASSES_ZERO and not _divides(operation))
            or (name == "add" and len(operation.parents) == 1 and operation.params)
        ):
            mine |= found[operation.parents[0]]
        found.append(mine)
    return found


def _divides(operation: Operation) -> bool:
    """Whether it divides by something computed, which may be zero where the dividend is."""
    return operation.name.rstrip("_") == "div" and len(operation.parents) > 1


def _multiplies(operation: Operation) -> bool:
    """Whether it is a contraction: convolution, product, attention."""
    name = operation.name
    return name in PRODUCTS or "convolution" in name or "scaled_dot_product" in name


def _makes_zero(operations: Sequence[Operation], i: int) -> bool:
    """Whether zero parameters make the result zero: a layer's own weight and bias, nothing that is computed."""
    operation = operations[i]
    if operation.name in ("mm", "addmm"):  # the bias is a parameter where only x and the weight were computed
        turned = any(operations[p].params and operations[p].name in TURNS for p in operation.parents)
        return turned and len(operation.parents) == 2
    if "batch_norm" in operation.name:  # without a scale, statistics are all it has
        return len(operation.parents) == 1 and any(name.endswith("weight") for name in operation.params)
    return operation.name in MAKES_ZERO and len(operation.parents) == 1 and bool(operation.params)


def _branch(
    model: nn.Module,
    operations: Sequence[Operation],
    results: Mapping[str, list[tuple[int, int]]],
    inside: Mapping[str, set[int]],
    silencing: frozenset[int],
    members: set[int],
) -> Branch | None:
    """The modules of a branch and what stands for each; None where none of them can silence it."""

    if not any(i in members and _makes_zero(operations, i) for i in silencing):
        return None
    within = {name for name, mine in inside.items() if name and mine <= members}
    outer = [name for name in within if name.rpartition(".")[0] not in within]
    outer = [name for name in outer if any(True for _ in model.get_submodule(name).parameters())]
    outer.sort(key=lambda name: max(inside[name]))
    ends = [name for name in outer if len(results.get(name, ())) == 1 and results[name][0][0] in silencing]
    # A product of the forward's own goes on without its layers, on whatever they are given.
    loose = members.difference(*(inside[name] for name in outer))
    if not ends or any(_multiplies(operations[i]) for i in loose):
        return None
    last, extra = ends[-1], results[ends[-1]][0][1]
    kinds = {name: "pass" for name in outer}
    kinds[last] = f"zero+{extra}" if extra else "zero"
    whole = any("." in name for name, _ in model.get_submodule(last).named_parameters())
    return Branch(last if whole else last.rpartition(".")[0] or last, kinds)
