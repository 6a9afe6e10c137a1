"""The record of one trace, in channel ids. :mod:`slim.channels.build` turns it into groups."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from slim.channels.branches import Operation
from slim.channels.ids import Ids, IntArray, Shadow


class Axis(NamedTuple):
    """One axis of one parameter or buffer."""

    param: str
    dim: int


class Term(NamedTuple):
    """A factor of a layer's cost that follows the plan: (kept of ``ids``) / ``per``."""

    ids: IntArray
    per: int = 1


@dataclasses.dataclass
class Contraction:
    """Multiply-accumulates of one contraction: ``factor`` times the kept width of every term.

    A product has its channels in ``nest`` instead: layers over (batch, rows, contracted, columns), each of which thins
    one of the four axes, and ``factor`` is the whole product's work.
    """

    module: str
    kind: str
    weight: str | None
    factor: int
    terms: list[Term]
    activations: list[tuple[int, IntArray | None]]  # (elements, layer of ids) of its input and its output
    nest: list[IntArray] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class SplitView:
    """An axis of channels seen as several: ``table`` (rest, outer, ..., inner). Whole slices along one can go."""

    modules: tuple[str, ...]  # whose forwards are running, innermost first
    step: int  # operations before it
    table: IntArray


@dataclasses.dataclass
class Pieces:
    """An axis of channels was cut: the ids along each piece."""

    modules: tuple[str, ...]  # whose forwards are running, innermost first
    step: int  # operations before it
    ids: list[IntArray]


@dataclasses.dataclass
class SizeUse:
    """A size that a forward gave to an operation: that of ``axis`` of ``layer``, in the innermost of ``modules``."""

    modules: tuple[str, ...]
    layer: IntArray
    axis: int


@dataclasses.dataclass
class NormCall:
    """A normalization layer met in the forward."""

    kind: str
    module: str
    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    own: IntArray
    read: IntArray | None  # ids of the stream it reads; None where it reads fixed data
    selective: bool = False  # whether its own channels may be fewer than the stream's


@dataclasses.dataclass
class TraceRecord:
    """Everything one trace recorded, in channel ids."""

    ids: Ids
    axes: dict[Axis, IntArray] = dataclasses.field(default_factory=dict)
    grouped: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # weight -> groups; its axis 1 is stored per group
    regroup: dict[str, Axis] = dataclasses.field(default_factory=dict)  # module -> axis its group count equals
    contractions: list[Contraction] = dataclasses.field(default_factory=list)
    norms: list[NormCall] = dataclasses.field(default_factory=list)
    balance: list[tuple[str, IntArray]] = dataclasses.field(default_factory=list)
    inexact: list[tuple[IntArray, str]] = dataclasses.field(default_factory=list)
    assumptions: list[tuple[str, IntArray]] = dataclasses.field(default_factory=list)
    reached: set[str] = dataclasses.field(default_factory=set)
    selects: list[tuple[str, IntArray, IntArray]] = dataclasses.field(default_factory=list)
    streams: dict[str, IntArray] = dataclasses.field(default_factory=dict)
    producers: list[tuple[str, IntArray]] = dataclasses.field(default_factory=list)
    raw_reads: list[IntArray] = dataclasses.field(default_factory=list)
    summed: list[IntArray] = dataclasses.field(default_factory=list)  # channels that are added up
    outputs: list[IntArray] = dataclasses.field(default_factory=list)
    scalars: list[tuple[float, Shadow]] = dataclasses.field(default_factory=list)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    split_views: list[SplitView] = dataclasses.field(default_factory=list)
    pieces: list[Pieces] = dataclasses.field(default_factory=list)
    sizes: list[SizeUse] = dataclasses.field(default_factory=list)
    inputs: dict[str, list[IntArray]] = dataclasses.field(default_factory=dict)  # module -> ids along axes it is given
    operations: list[Operation] = dataclasses.field(default_factory=list)
    results: dict[str, list[tuple[int, int]]] = dataclasses.field(default_factory=dict)  # see ``branches``
    returned: set[int] = dataclasses.field(default_factory=set)  # operations whose results the network returns
    settings: dict[tuple[str, str], IntArray] = dataclasses.field(default_factory=dict)  # (module, attribute) -> ids
    real: bool = False
