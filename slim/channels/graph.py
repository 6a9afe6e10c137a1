"""The channel graph: groups, what holds them, what they cost. Built from one trace; pure data from then on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from slim.channels.branch_check import removable_branches
from slim.channels.branches import Branch, Operation, find_branches
from slim.channels.cost import CostModel
from slim.channels.ids import IntArray
from slim.channels.plan import Keep, Plan
from slim.channels.structure import Balance, ChannelGroup, Layer, LazyGroups, Scale, Space
from slim.channels.text_table import align, with_prefix
from slim.channels.trace_record import Axis
from slim.errors import SlimError

BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(eq=False)
class ChannelGraph:
    """Which channels of a network belong together, why some must stay, and what each costs. See :func:`slim.trace`."""

    model: nn.Module
    count: int
    axes: dict[Axis, IntArray]
    grouped: dict[str, int]
    regroup: dict[str, Axis]
    settings: dict[tuple[str, str], IntArray]  # (module, attribute) -> the groups that it counts
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
    operations: list[Operation]
    results: dict[str, list[tuple[int, int]]]
    returned: set[int]

    def __len__(self) -> int:
        return self.count

    @property
    def groups(self) -> Sequence[ChannelGroup]:
        """Every channel group, in trace order."""
        return LazyGroups(self.count, self._group)

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

    def _keep_around_branches(self, removed: BoolArray | None) -> npt.NDArray[np.int64]:
        """:meth:`_keep` for layers outside of branches that are gone: what those passed on is as wide as it was."""
        keep = self._keep(removed)
        for _, inner in self._gone(removed):
            keep[inner] = 1
        return keep

    @cached_property
    def _cost(self) -> CostModel:
        return CostModel(self.model, self.layers, self.axes, self.grouped, self.regroup)

    def layer_macs(self, removed: BoolArray | None = None) -> list[int]:
        """Multiply-accumulates of every layer in trace order, for the network without the ``removed`` groups."""
        gone = [branch for branch, _ in self._gone(removed)]
        macs = self._cost.layer_macs(self._keep_around_branches(removed))
        return [0 if _held(gone, layer.module) else n for layer, n in zip(self.layers, macs, strict=True)]

    def macs(self, removed: BoolArray | None = None) -> int:
        """Multiply-accumulates of one forward on the example inputs (FLOPs = 2 x MACs)."""
        return sum(self.layer_macs(removed))

    def params(self, removed: BoolArray | None = None) -> int:
        """Parameters of the network without the ``removed`` groups."""
        return self._cost.params(self._keep(removed), [branch for branch, _ in self._gone(removed)])

    def depth(self, removed: BoolArray | None = None) -> int:
        """Convolutions and linear layers of one forward; those of branches that are gone do not count."""
        gone = [branch for branch, _ in self._gone(removed)]
        layers = [layer.module for layer in self.layers if layer.weight is not None]
        return sum(not any(branch.holds(module) for branch in gone) for module in layers)

    def peak_activation(self, removed: BoolArray | None = None) -> int:
        """Elements of the largest input + output of one layer."""
        gone = [branch for branch, _ in self._gone(removed)]
        return self._cost.peak_activation(self._keep_around_branches(removed), gone)

    # --- branches ------------------------------------------------------------------------------------------------

    @cached_property
    def branches(self) -> list[tuple[Branch, IntArray]]:
        """Residual branches that can go as a whole, and the groups (n,) that are theirs alone.

        None in a network whose streams are read selectively (``residual="select"``), or that only runs on real values.
        """
        if self.inputs is None or len(self.implied) or self.selects:
            return []
        candidates = list(find_branches(self.model, self.operations, self.results, self.returned))
        return removable_branches(self.model, self.inputs, candidates, self.axes, self.count, self.balance)

    def _gone(self, removed: BoolArray | None) -> list[tuple[Branch, IntArray]]:
        """The branches of which nothing stays. Nobody can have removed one before asking which there are."""
        if removed is None or "branches" not in self.__dict__:
            return []
        return [(branch, inner) for branch, inner in self.branches if removed[inner].all()]

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
        removed = self.closure(removed)
        if removed.shape == (self.count,) and any(
            len(groups) and groups.min() >= 0 and removed[groups].all() for groups in self.axes.values()
        ):
            _ = self.branches  # something is empty: a branch may be gone
        self.check_removal(removed)
        keep = self._keep(removed).astype(bool)
        gone = [branch for branch, _ in self._gone(removed)]
        axes = {key: kept for key, kept in self._kept_channels(keep).items() if not _held(gone, key[0])}
        return Plan(
            axes=axes,
            grouped={name: g for name, g in self.grouped.items() if (name, 0) in axes or (name, 1) in axes},
            regroup=self._group_counts(axes, keep),
            attributes={name: v for name, v in self._attributes(keep).items() if not _held(gone, name)},
            replaced={name: kind for branch in gone for name, kind in branch.modules.items()},
            selects=self._kept_streams(axes, keep),
            widths=self._module_widths(keep),
            inputs=self.inputs,
        )

    def check_removal(self, removed: BoolArray) -> None:
        """Raise when the structure forbids removing these groups.

        Args:
            removed: (groups,) bool.

        Raises:
            SlimError: A wrong shape, a group that must stay, an empty layer, or blocks that lose unequally many.
        """
        if removed.shape != (self.count,):
            raise SlimError(f"removed must be one flag per group. Got shape {removed.shape}, groups {self.count}.")
        gone = self._gone(removed)
        inside = np.zeros(self.count, dtype=bool)
        for _, inner in gone:
            inside[inner] = True
        stuck = np.flatnonzero(removed & ~self.prunable & ~self.inexact & ~inside)
        if len(stuck):
            space = self.spaces[self.space_of[stuck[0]]]
            raise SlimError(
                f"A removed group must be prunable. Got group {stuck[0]} of {space.name}: "
                f"{self.reasons.get(int(stuck[0]), 'it must stay')}. Leave it out of the plan."
            )
        for (name, dim), groups in self.axes.items():
            mine = groups[groups >= 0]
            if len(mine) == len(groups) and removed[mine].all() and not _held([b for b, _ in gone], name):
                raise SlimError(
                    f"No layer may become empty. Got {name} (axis {dim}) without channels. Keep one, with "
                    "min_channels=1."
                )
        for balance in self.balance:
            if all(inside[block[block >= 0]].all() for block in balance.blocks):
                continue
            counts = [int(removed[block[block >= 0]].sum()) for block in balance.blocks]
            if len(set(counts)) > 1:
                raise SlimError(
                    f"Every block must lose equally many channels. Got {counts[:8]} ({balance.where}). "
                    "Remove balanced sets, as slim.select does."
                )

    def _kept_channels(self, keep: BoolArray) -> dict[tuple[str, int], Keep]:
        """What stays of every parameter axis that loses channels."""
        axes: dict[tuple[str, int], Keep] = {}
        cache: dict[int, Keep] = {}
        for axis, groups in self.axes.items():
            if id(groups) not in cache:
                cache[id(groups)] = Keep(len(groups), np.flatnonzero(keep[groups]).astype(np.int64))
            entry = cache[id(groups)]
            if len(entry.kept) < entry.size:
                axes[axis] = entry
        return axes

    def _group_counts(self, axes: dict[tuple[str, int], Keep], keep: BoolArray) -> dict[str, int]:
        """The new number of groups of every module whose group count follows its width."""
        counts = {}
        for module, axis in self.regroup.items():
            if axis.dim == -1:  # whole groups go: as many stay as have a row left
                name = axis.param
                rows = axes.get((name, 0))
                if rows is not None:
                    counts[module] = len(np.unique(rows.kept // (rows.size // self.grouped[name])))
            elif axis in axes:
                entry = axes[axis]
                reads = self.axes.get(Axis(axis.param, 1)) if axis.param in self.grouped else None
                counts[module] = int(keep[reads].sum()) if reads is not None else len(entry.kept)
        return counts

    def _attributes(self, keep: BoolArray) -> dict[str, dict[str, int]]:
        """The new value of every module attribute that counts channels and changes."""
        attributes: dict[str, dict[str, int]] = {}
        for (module, name), groups in self.settings.items():
            if not keep[groups].all():
                attributes.setdefault(module, {})[name] = int(keep[groups].sum())
        return attributes

    def _kept_streams(self, axes: dict[tuple[str, int], Keep], keep: BoolArray) -> dict[str, Keep]:
        """What stays of the stream that every selecting normalization reads."""
        selects = {}
        for norm, stream in self.selects:
            stays = Keep(len(stream), np.flatnonzero(keep[stream]).astype(np.int64))
            own = axes.get((f"{norm}.weight", 0))
            if len(stays.kept) < stays.size or own is not None:
                selects[norm] = stays
        return selects

    def _module_widths(self, keep: BoolArray) -> dict[str, tuple[int, int]]:
        """(width, width that stays) of every module."""
        widths: dict[str, tuple[int, int]] = {}
        for space in self.spaces:
            for module in space.modules:
                dense, kept = widths.get(module, (0, 0))
                widths[module] = (dense + len(space.groups), kept + int(keep[space.groups].sum()))
        return widths

    def report(self) -> str:
        """A table, one line per layer: its width, what it is coupled with, MACs, prunable or why not."""
        macs: dict[str, int] = {}
        for layer, count in zip(self.layers, self.layer_macs(), strict=True):
            macs[layer.module] = macs.get(layer.module, 0) + count
        rows = [("layer", "width", "may go", "MACs", "coupled with / why not")]
        for space in self.spaces:
            free = int(self.prunable[space.groups].sum())
            cost = with_prefix(macs.get(space.name, 0))
            rows.append((space.name, str(len(space.groups)), str(free), cost, self.space_note(space)))
        lines = [
            *align(rows),
            "",
            f"{self.count} channel groups, {int(self.prunable.sum())} prunable, {int(np.sum(self.inexact))} inexact; "
            f"{with_prefix(self.macs())} MACs ({with_prefix(2 * self.macs())} FLOPs) on {self.input_shapes}; "
            f"{with_prefix(self.params())} parameters",
        ]
        lines += [f"operation without a rule: {op} (in {where})" for op, where in self.unknown.items()]
        if self.unreached:
            lines.append("parameters the forward never reached: " + ", ".join(self.unreached[:8]))
        return "\n".join(lines)

    def space_note(self, space: Space) -> str:
        """The other layers of a space, after the reason why some of it must stay."""
        others = [m for m in space.modules if m != space.name]
        note = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        stuck = space.groups[~self.prunable[space.groups]]
        if not len(stuck):
            return note
        why = self.reasons.get(int(stuck[0]), "must stay")
        return f"{why}; with {note}" if note else why


def _held(branches: Sequence[Branch], name: str) -> bool:
    """Whether any of these branches holds the module or parameter."""
    return any(branch.holds(name) for branch in branches)
