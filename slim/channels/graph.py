"""The channel graph: groups, what holds them, what they cost. Built from one trace; pure data from then on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from slim.channels.ids import IntArray
from slim.channels.plan import Keep, Plan
from slim.channels.trace_record import Axis

BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Scale:
    """The scale of a normalization layer: parameter names, and the group of each of its channels (C,)."""

    module: str
    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    groups: IntArray
    kind: str = "batch"


@dataclasses.dataclass(frozen=True)
class Space:
    """Groups along the same layers: what a report calls a layer. ``modules`` make or normalize its channels."""

    name: str
    modules: tuple[str, ...]
    groups: IntArray


@dataclasses.dataclass(frozen=True)
class Balance:
    """Every block must lose equally many entries (groups of a convolution, pieces of a split)."""

    where: str
    blocks: tuple[IntArray, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Multiply-accumulate work: ``factor`` times the kept part of every term (group indices, divisor)."""

    module: str
    kind: str
    weight: str | None
    factor: int
    terms: tuple[tuple[IntArray, int], ...]
    activations: tuple[tuple[int, IntArray | None], ...]


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """The smallest set of channel slices, over all layers, that can only stay or go together."""

    index: int
    name: str
    members: list[tuple[str, int, list[int]]]
    prunable: bool
    exact: bool
    reason: str


class _Groups(Sequence[ChannelGroup]):
    """Groups are arrays; objects are made when somebody looks at one."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph

    def __len__(self) -> int:
        return self._graph.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._graph._group(int(index) % len(self))

    def __iter__(self) -> Iterator[ChannelGroup]:
        return (self[i] for i in range(len(self)))


@dataclasses.dataclass(eq=False)
class ChannelGraph:
    """Which channels of a network belong together, why some must stay, and what each costs. See :func:`slim.trace`."""

    model: nn.Module
    count: int
    axes: dict[Axis, IntArray]
    grouped: dict[str, int]
    regroup: dict[str, Axis]
    prunable: BoolArray
    inexact: BoolArray
    reasons: dict[int, str]
    scales: list[Scale]
    spaces: list[Space]
    space_of: IntArray
    balance: list[Balance]
    implied: IntArray
    layers: list[Layer]
    selects: list[tuple[str, IntArray]]
    unknown: dict[str, str]
    unreached: list[str]
    inputs: Any
    input_shapes: str

    def __len__(self) -> int:
        return self.count

    @property
    def groups(self) -> Sequence[ChannelGroup]:
        """Every channel group, in trace order."""
        return _Groups(self)

    def _group(self, index: int) -> ChannelGroup:
        members = []
        for (param, dim), groups in self.axes.items():
            where = np.flatnonzero(groups == index)
            if len(where):
                members.append((param, dim, where.tolist()))
        space = self.spaces[self.space_of[index]]
        position = int(np.searchsorted(space.groups, index))
        prunable = bool(self.prunable[index])
        return ChannelGroup(
            index, f"{space.name}[{position}]", members, prunable, not self.inexact[index], self.reason(index)
        )

    def reason(self, index: int) -> str:
        """Why a group must stay; empty when it may go."""
        return "" if self.prunable[index] else self.reasons.get(int(index), "")

    # --- cost ----------------------------------------------------------------------------------------------------

    def _keep(self, removed: BoolArray | None) -> npt.NDArray[np.int64]:
        """1 for every group that stays; one more entry, always 1, answers for index -1 (fixed)."""
        keep = np.ones(self.count + 1, dtype=np.int64)
        if removed is not None:
            keep[:-1] -= np.asarray(removed, dtype=bool)
        return keep

    @cached_property
    def _term_table(self) -> tuple[IntArray, IntArray, list[list[tuple[int, int]]]]:
        """All distinct index arrays of the layers' terms end to end, their starts, and per layer (array, divisor)."""
        numbers: dict[bytes, int] = {}
        arrays: list[IntArray] = []
        rows = []
        for layer in self.layers:
            row = []
            for groups, per in layer.terms:
                key = groups.tobytes()
                if key not in numbers:
                    numbers[key] = len(arrays)
                    arrays.append(groups)
                row.append((numbers[key], per))
            rows.append(row)
        flat = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
        starts = np.cumsum([0, *map(len, arrays)])[:-1].astype(np.int64)
        return flat, starts, rows

    def layer_macs(self, removed: BoolArray | None = None) -> list[int]:
        """Multiply-accumulates of every layer in trace order, for the network without the ``removed`` groups."""
        flat, starts, rows = self._term_table
        kept = np.add.reduceat(self._keep(removed)[flat], starts).tolist() if len(flat) else []
        return [
            layer.factor * math.prod(kept[number] // per for number, per in row)
            for layer, row in zip(self.layers, rows, strict=True)
        ]

    def macs(self, removed: BoolArray | None = None) -> int:
        """Multiply-accumulates of one forward on the example inputs (FLOPs = 2 x MACs)."""
        return sum(self.layer_macs(removed))

    @cached_property
    def _param_table(self) -> tuple[int, list[tuple[int, list[tuple[IntArray, int]]]]]:
        constant, table = 0, []
        for name, parameter in self.model.named_parameters():
            size, terms = parameter.numel(), []
            owner = name.rpartition(".")[0]
            for dim, n in enumerate(parameter.shape):
                groups = self.axes.get(Axis(name, dim))
                if groups is None or (groups < 0).all():
                    continue
                per = self.grouped.get(name, 1) if dim == 1 else 1
                if per > 1 and owner in self.regroup:
                    continue  # the group count follows the width; channels per group stay
                terms.append((groups, per))
                size //= n
            if terms:
                table.append((size, terms))
            else:
                constant += size
        return constant, table

    def params(self, removed: BoolArray | None = None) -> int:
        """Parameters of the network without the ``removed`` groups."""
        constant, table = self._param_table
        keep = self._keep(removed)
        return constant + sum(
            size * math.prod(int(keep[groups].sum()) // per for groups, per in terms) for size, terms in table
        )

    def peak_activation(self, removed: BoolArray | None = None) -> int:
        """Elements of the largest input + output of one layer."""
        keep = self._keep(removed)

        def end(elements: int, groups: IntArray | None) -> int:
            return elements if groups is None else elements * int(keep[groups].sum())

        return max((sum(end(*e) for e in layer.activations) for layer in self.layers), default=0)

    # --- plan ----------------------------------------------------------------------------------------------------

    def closure(self, removed: BoolArray) -> BoolArray:
        """What follows from removing groups: readers of a removed stream go, and streams that nobody reads go."""
        removed = np.array(removed, dtype=bool)
        if not len(self.implied):
            return removed
        stream, reader = self.implied[:, 0], self.implied[:, 1]
        while True:
            before = removed.copy()
            removed[reader[removed[stream]]] = True
            alive = np.zeros(self.count, dtype=bool)
            alive[stream[~removed[reader]]] = True
            unread = np.zeros(self.count, dtype=bool)
            unread[stream] = True
            removed |= unread & ~alive & self.prunable
            if np.array_equal(before, removed):
                return removed

    def plan(self, removed: BoolArray) -> Plan:
        """The plan that removes groups (and what follows from them).

        Args:
            removed: (groups,) True where a group goes.

        Raises:
            SlimError: when blocks lose unequally many, a layer would be empty, or a group must stay.
        """
        from slim.channels.check import check_removal

        removed = self.closure(removed)
        check_removal(self, removed)
        keep = self._keep(removed).astype(bool)
        axes: dict[tuple[str, int], Keep] = {}
        cache: dict[int, Keep] = {}
        for axis, groups in self.axes.items():
            if id(groups) not in cache:
                cache[id(groups)] = Keep(len(groups), np.flatnonzero(keep[groups]).astype(np.int64))
            found = cache[id(groups)]
            if len(found.kept) < found.size:
                axes[axis] = found
        regroup = {}
        for module, axis in self.regroup.items():
            if axis.dim == -1:  # whole groups go: as many stay as have a row left
                name = axis.param
                rows = axes.get((name, 0))
                if rows is not None:
                    regroup[module] = len(np.unique(rows.kept // (rows.size // self.grouped[name])))
            elif axis in axes:
                entry = axes[axis]
                reads = self.axes.get(Axis(axis.param, 1)) if axis.param in self.grouped else None
                regroup[module] = int(keep[reads].sum()) if reads is not None else len(entry.kept)
        selects = {}
        for norm, stream in self.selects:
            stays = Keep(len(stream), np.flatnonzero(keep[stream]).astype(np.int64))
            own = axes.get((f"{norm}.weight", 0))
            if len(stays.kept) < stays.size or own is not None:
                selects[norm] = stays
        widths: dict[str, tuple[int, int]] = {}
        for space in self.spaces:
            for module in space.modules:
                dense, kept = widths.get(module, (0, 0))
                widths[module] = (dense + len(space.groups), kept + int(keep[space.groups].sum()))
        return Plan(
            axes=axes,
            grouped={name: g for name, g in self.grouped.items() if (name, 0) in axes or (name, 1) in axes},
            regroup=regroup,
            selects=selects,
            widths=widths,
            inputs=self.inputs,
        )

    def report(self) -> str:
        """A readable table: layers, widths, what is coupled, MACs, prunable or why not."""
        from slim.channels.describe import describe

        return describe(self)
