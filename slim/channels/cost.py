"""Cost of a network without some channel groups: MACs, parameters, largest activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from slim.channels.branches import Branch
from slim.channels.ids import IntArray
from slim.channels.structure import Layer
from slim.channels.trace_record import Axis


class CostModel:
    """Costs as functions of ``keep``.

    ``keep`` is (groups + 1,) int64: 1 for every group that stays, 0 for one that goes; the last entry, always 1, stands
    for index -1 (a channel that belongs to no group and stays).

    Args:
        model: Its parameters' shapes are counted.
        layers: Multiply-accumulate work in trace order.
        axes: Group of every entry of a parameter axis.
        grouped: Number of groups of every grouped convolution weight.
        regroup: Modules whose group count follows their width.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        axes: Mapping[Axis, IntArray],
        grouped: Mapping[str, int],
        regroup: Mapping[str, Axis],
    ) -> None:
        self._model, self._layers, self._axes = model, layers, axes
        self._grouped, self._regroup = grouped, regroup

    @cached_property
    def _layer_terms(self) -> tuple[IntArray, IntArray, list[list[tuple[int, int]]]]:
        """All distinct index arrays of the layers' terms end to end, their starts, and per layer (array, divisor)."""
        numbers: dict[bytes, int] = {}
        arrays: list[IntArray] = []
        rows = []
        for layer in self._layers:
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

    def layer_macs(self, keep: npt.NDArray[np.int64]) -> list[int]:
        """Multiply-accumulates of every layer, in trace order."""
        flat, starts, rows = self._layer_terms
        kept = np.add.reduceat(keep[flat], starts).tolist() if len(flat) else []
        return [
            layer.factor * math.prod(kept[number] // per for number, per in row)
            for layer, row in zip(self._layers, rows, strict=True)
        ]

    @cached_property
    def _parameter_terms(self) -> list[tuple[str, int, list[tuple[IntArray, int]]]]:
        """(name, fixed factor, [(groups of an axis, divisor)]) per parameter."""
        table = []
        for name, parameter in self._model.named_parameters():
            size, terms = parameter.numel(), []
            owner = name.rpartition(".")[0]
            for dim, n in enumerate(parameter.shape):
                groups = self._axes.get(Axis(name, dim))
                if groups is None or (groups < 0).all():
                    continue
                per = self._grouped.get(name, 1) if dim == 1 else 1
                if per > 1 and owner in self._regroup:
                    continue  # the group count follows the width; channels per group stay
                terms.append((groups, per))
                size //= n
            table.append((name, size, terms))
        return table

    def params(self, keep: npt.NDArray[np.int64], gone: Sequence[Branch] = ()) -> int:
        """Number of parameters, without those of the branches that are ``gone``."""
        return sum(
            size * math.prod(int(keep[groups].sum()) // per for groups, per in terms)
            for name, size, terms in self._parameter_terms
            if not any(branch.holds(name) for branch in gone)
        )

    def peak_activation(self, keep: npt.NDArray[np.int64], gone: Sequence[Branch] = ()) -> int:
        """Elements of the largest input + output of one layer, without those of the branches that are ``gone``."""

        def size(elements: int, groups: IntArray | None) -> int:
            return elements if groups is None else elements * int(keep[groups].sum())

        left = [layer for layer in self._layers if not any(branch.holds(layer.module) for branch in gone)]
        return max((sum(size(*part) for part in layer.activations) for layer in left), default=0)
