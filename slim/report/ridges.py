"""The gammas of every layer as a ridge, one above the other, and the line at which the cut fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.report.cuts import magnitudes, visible
from slim.report.style import CUT, INK, THIN, blank, legend, short, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 44
SMOOTHING = 0.02
"""Width of the kernel, as a share of the axis, which is logarithmic."""


def ridges(
    gammas: Mapping[str, Sequence[float]], cut: float | None = None, removed: Mapping[str, Sequence[bool]] | None = None
) -> Figure:
    """Density of log |gamma| in every layer, first layer on top: what goes in red, what stays in blue.

    A clean cut is a valley in every ridge; a layer without a valley loses channels that matter.
    """
    names = [name for name in gammas if len(gammas[name])]
    values = {name: magnitudes({name: gammas[name]}, cut, removed) for name in names}
    floor, _, zeros = visible(np.concatenate([all_of for all_of, _ in values.values()]))
    top = max(float(max(all_of.max() for all_of, _ in values.values())), floor * 10)
    room = (top / floor) ** 0.08
    at = np.geomspace(floor / room, top * room, 240)
    figure = blank(8.6, float(np.clip(1.5 + 0.3 * len(names), 3.0, 13)))
    axes = figure.subplots()
    style(axes, "Gammas of every layer, and the cut", grid="x")
    for row, name in enumerate(names):
        all_of, gone = values[name]
        whole = _density(at, np.maximum(all_of, floor))
        lost = _density(at, np.maximum(all_of[gone], floor)) * gone.mean()
        scale = 1.5 / max(whole.max(), 1e-9)
        order: dict[str, Any] = {"zorder": 2 + row, "linewidth": 0}
        axes.fill_between(at, row, row - scale * whole, color=THIN, label="" if row else "kept", **order)
        axes.fill_between(at, row, row - scale * lost, color=CUT, label="" if row else "removed", **order)
        axes.plot(at, row - scale * whole, color="white", linewidth=0.9, zorder=2 + row)
    if cut is not None:
        line: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (5, 3)), "zorder": 3 + len(names)}
        axes.axvline(max(cut, floor), label=f"cut at {cut:.3g}", **line)
    axes.set_xscale("log")
    axes.set_xlim(at[0], at[-1])
    axes.set_xlabel("|gamma|" + (f"  ({zeros} at or below {floor:.0e} stand there)" if zeros else ""))
    every = -(-len(names) // NAMED)
    axes.set_yticks(range(0, len(names), every), [short(name) for name in names[::every]], fontsize=8)
    axes.set_ylim(len(names) - 0.6, -1.9)
    legend(axes)
    return figure


def _density(at: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean of Gaussian kernels around the logarithm of ``values`` at the points ``at``; zero without values."""
    if not len(values):
        return np.zeros(len(at))
    width = SMOOTHING * np.log(at[-1] / at[0])
    apart = (np.log(at)[:, None] - np.log(values)[None, :]) / width
    density: np.ndarray[Any, Any] = np.exp(-0.5 * apart**2).mean(1)
    return density
