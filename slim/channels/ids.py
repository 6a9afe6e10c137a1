"""Channel ids: who belongs with whom, kept in a union-find, and the shadows that carry ids through a forward.

A *shadow* is a tuple of *layers*. A layer is an integer array with the rank of the activation it shadows, of size 1 on
every axis along which the id does not vary. An element of the activation goes when any of its layers' ids goes. What a
convolution emits carries one layer of shape (1, C, 1, 1); a weight one per axis: (O, 1, 1, 1) and (1, I, 1, 1).

Id 0 is reserved for data that is no channel of the network (inputs, constants): whatever meets it can not be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Shadow = tuple[IntArray, ...]
FIXED = 0


class Ids:
    """A union-find over integers in which whole arrays of pairs are joined at once."""

    def __init__(self) -> None:
        self._parent = np.arange(4096, dtype=np.int64)
        self._count = 1
        self.pins: list[tuple[IntArray, str]] = []

    def __len__(self) -> int:
        return self._count

    def copy(self) -> Ids:
        """An independent copy."""
        other = Ids()
        other._parent, other._count, other.pins = self._parent.copy(), self._count, list(self.pins)
        return other

    def restore(self, earlier: Ids) -> None:
        """Be again what ``earlier`` (a copy) was; ids handed out since stay, each alone."""
        self._parent[: len(earlier._parent)] = earlier._parent
        self._parent[earlier._count : self._count] = np.arange(earlier._count, self._count)
        self.pins = earlier.pins

    def fresh(self, count: int) -> IntArray:
        """``count`` ids that nobody has met yet."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = np.arange(max(2 * len(self._parent), self._count), dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        return np.arange(start, self._count, dtype=np.int64)

    def find(self, ids: IntArray) -> IntArray:
        """The representative of every id; paths are compressed on the way."""
        parent = self._parent
        root = parent[ids]
        while np.count_nonzero((above := parent[root]) != root):
            root = above
        parent[ids] = root
        return root

    def join(self, left: IntArray, right: IntArray, reason: str) -> None:
        """Make ``left[i]`` and ``right[i]`` one (arrays broadcast). What meets id 0 is pinned with ``reason``."""
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        if np.count_nonzero(left) < left.size or np.count_nonzero(right) < right.size:
            fixed = (left == FIXED) | (right == FIXED)
            self.pin(left[fixed], reason)
            self.pin(right[fixed], reason)
            left, right = left[~fixed], right[~fixed]
        left, right = left.ravel(), right.ravel()
        while True:
            a, b = self.find(left), self.find(right)
            differ = a != b
            if not np.count_nonzero(differ):
                return
            # Roots always point to smaller ids, so no cycle can arise; when several pairs name one root, one of
            # them wins this round and the loop takes the others.
            a, b = a[differ], b[differ]
            upper, lower = np.maximum(a, b), np.minimum(a, b)
            self._parent[upper] = lower
            lost = self._parent[upper] != lower
            if not np.count_nonzero(lost):
                return
            left, right = a[lost], b[lost]

    def pin(self, ids: IntArray, reason: str) -> None:
        """Nothing in ``ids`` can be removed exactly, for ``reason``."""
        ids = ids[ids != FIXED]
        if ids.size:
            self.pins.append((np.unique(ids), reason))

    def roots(self) -> IntArray:
        """The representative of every id handed out so far."""
        return self.find(np.arange(self._count, dtype=np.int64))


def varying(layer: IntArray) -> tuple[int, ...]:
    """The axes along which a layer's ids vary."""
    return tuple(d for d, n in enumerate(layer.shape) if n > 1)


def along(shadow: Shadow, axis: int) -> list[IntArray]:
    """The layers that vary along ``axis``."""
    return [layer for layer in shadow if layer.shape[axis] > 1]


def axis_layer(ids: IntArray, axis: int, rank: int) -> IntArray:
    """``ids`` (n,) as a layer that varies along one axis of a tensor of that rank."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return ids.reshape(shape)


def compress(layer: IntArray) -> IntArray:
    """Shrink every axis along which the ids turn out not to vary."""
    for d, n in enumerate(layer.shape):
        if n > 1:
            first = layer.take([0], axis=d)
            if (layer == first).all():
                layer = first
    return layer


def segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Factor a view from shape ``old`` to shape ``new`` into the smallest runs of axes with equal products.

    >>> segments((2, 6, 5), (2, 3, 2, 5))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 3), range(3, 4))]
    """
    runs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        a = b = 1
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(new):
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        runs.append((range(i0, i), range(j0, j)))
    return runs


def view(shadow: Shadow, old: Sequence[int], new: Sequence[int]) -> tuple[Shadow, list[IntArray]]:
    """Carry a shadow through a view.

    Returns:
        The new shadow, and for every axis of ids that was split the array of ids (rest, outer, ..., inner). Removing
        channels keeps the meaning of such a split only if whole slices along one of its axes go.
    """
    if not shadow:
        return (), []
    if 0 in old:
        return (), []
    runs = segments(old, new)
    out: list[IntArray] = []
    splits: list[IntArray] = []
    for layer in shadow:
        middle: list[int] = []
        shape: list[int] = []
        touched = []
        for before, after in runs:
            vary = any(layer.shape[d] > 1 for d in before)
            middle += [old[d] if vary else 1 for d in before]
            shape += [new[d] if vary else 1 for d in after]
            if vary and sum(new[d] > 1 for d in after) > 1:
                touched.append(after)
        result = np.broadcast_to(layer, middle).reshape(shape)
        if touched:
            for after in touched:
                rest = [d for d in range(result.ndim) if d not in after]
                moved = result.transpose(rest + list(after))
                splits.append(moved.reshape(-1, *(new[a] for a in after)))
            result = compress(result)
        elif any(layer.shape[d] > 1 and len(before) > 1 for before, _ in runs for d in before):
            result = compress(result)
        out.append(result)
    return tuple(out), splits


def merge(layers: Iterable[IntArray]) -> Shadow:
    """One layer per pattern of varying axes, without those that a wider pattern covers; for layers just joined."""
    kept: list[IntArray] = []
    for layer in sorted(layers, key=lambda x: -len(varying(x))):
        pattern = set(varying(layer))
        if pattern and not any(pattern <= set(varying(k)) for k in kept):
            kept.append(layer)
    return tuple(kept)


def alive(layers: Iterable[IntArray]) -> Shadow:
    """The layers that still vary along some axis."""
    return tuple(layer for layer in layers if layer.size > 1)


def pad_rank(shadow: Shadow, rank: int) -> Shadow:
    """Prepend axes of size 1, as broadcasting does."""
    return tuple(layer.reshape((1,) * (rank - layer.ndim) + layer.shape) for layer in shadow)


def components(table: IntArray, axis: int) -> int:
    """How many slices of ``table`` along ``axis`` are independent: slices that share an id count as one.

    >>> components(np.array([[1, 2], [1, 3]]), 0), components(np.array([[1, 2], [1, 3]]), 1)
    (1, 2)
    """
    rows = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
    values, inverse = np.unique(rows, return_inverse=True)
    nodes = Ids()
    slices, ids = nodes.fresh(len(rows)), nodes.fresh(len(values))
    nodes.join(np.broadcast_to(slices[:, None], rows.shape), ids[inverse.reshape(rows.shape)], "")
    return len(np.unique(nodes.find(slices)))
