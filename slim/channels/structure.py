"""The parts of a channel graph: scales, spaces, balance constraints, layers with their cost, and groups. Plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from slim.channels.ids import IntArray


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


class LazyGroups(Sequence[ChannelGroup]):
    """A sequence of ``count`` channel groups; ``make(index)`` builds one when it is accessed."""

    def __init__(self, count: int, make: Callable[[int], ChannelGroup]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(int(index) % len(self))

    def __iter__(self) -> Iterator[ChannelGroup]:
        return (self[i] for i in range(len(self)))
