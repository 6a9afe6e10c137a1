"""Number the channel groups: the connected components of the joined ids, in the order in which the trace met them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slim.channels.ids import FIXED, IntArray
from slim.channels.trace_record import Axis, TraceRecord

BoolArray = npt.NDArray[np.bool_]


class GroupNumbers:
    """Maps channel ids to group numbers.

    Attributes:
        count: Number of groups.
    """

    def __init__(self, record: TraceRecord) -> None:
        self._roots = record.ids.roots()
        self._reasons: dict[int, str] = {}
        for array, reason in record.ids.pins:
            for root in np.unique(self._roots[array]).tolist():
                self._reasons[root] = self._reasons.get(root) or reason
        # An id pinned without a reason is a position (kernel tap, vocabulary row), not a channel.
        positions = np.array([r for r, reason in self._reasons.items() if not reason], dtype=np.int64)
        arrays = [self._roots[a] for a in record.axes.values()]
        every = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
        every = every[~np.isin(every, positions) & (every != FIXED)]
        unique, first = np.unique(every, return_index=True)
        order = unique[np.argsort(first)]
        self._group_of_root = np.full(len(record.ids), -1, dtype=np.int64)
        self._group_of_root[order] = np.arange(len(order))
        self._group_of_id = self._group_of_root[self._roots]
        self.count = len(order)
        # Keyed by the arrays' identity: the record keeps them alive.
        self._cache: dict[int, IntArray] = {}

    def groups(self, ids: IntArray) -> IntArray:
        """The group of every id, flat; -1 for ids that are no channel of the network."""
        if id(ids) not in self._cache:
            self._cache[id(ids)] = self._group_of_id[ids.ravel()]
        return self._cache[id(ids)]

    def axes(self, record: TraceRecord) -> dict[Axis, IntArray]:
        """The groups along every parameter axis; equal arrays are one object."""
        shared: dict[bytes, IntArray] = {}
        axes = {}
        for axis, array in record.axes.items():
            groups = self.groups(array)
            axes[axis] = shared.setdefault(groups.tobytes(), groups)
        return axes

    def pinned(self, record: TraceRecord) -> tuple[BoolArray, BoolArray, dict[int, str]]:
        """(groups that must stay, groups whose removal changes the rest, the reason per group), (groups,) bool each."""
        pinned, inexact = np.zeros(self.count, dtype=bool), np.zeros(self.count, dtype=bool)
        reasons: dict[int, str] = {}
        for root, reason in self._reasons.items():
            g = int(self._group_of_root[root])
            if g >= 0:
                pinned[g], reasons[g] = True, reason
        for array, reason in record.inexact:
            for g in np.unique(self.groups(array)).tolist():
                if g >= 0 and not pinned[g]:
                    inexact[g] = True
                    reasons.setdefault(g, reason)
        return pinned, inexact, reasons
