"""Figures of a cut: widths before and after, and its threshold in the distribution of the gammas.

They stay readable from 5 to 200 layers: up to ``NAMED`` layers each has its own labelled row; beyond that the layers
form one profile with every k-th name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.report import formatting
from slim.report.style import CUT, DENSE, INK, THIN, blank, legend, short, sparse_names, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 44


def widths(widths: Mapping[str, Sequence[int]]) -> Figure:
    """Channels of every layer before (grey) and after (blue)."""
    names = list(widths)
    before = np.array([float(widths[name][0]) for name in names])
    after = np.array([float(widths[name][1]) for name in names])
    gone = 1 - after.sum() / max(before.sum(), 1)
    total, left = formatting.count(before.sum()), formatting.count(after.sum())
    title = f"Channels per layer: {total} before, {left} after ({-100 * gone:+.1f}%)"
    if len(names) <= NAMED:
        figure = blank(8.6, 1.3 + 0.27 * max(len(names), 3))
        axes = figure.subplots()
        style(axes, title, grid="x")
        rows = np.arange(len(names))
        axes.barh(rows, before, color=DENSE, height=0.74, label="before")
        axes.barh(rows, after, color=THIN, height=0.74, label="after")
        for row, (wide, thin) in enumerate(zip(before, after, strict=True)):
            text = f"{thin:.0f} of {wide:.0f}" if thin != wide else f"{wide:.0f}, all kept"
            axes.annotate(
                text, (wide, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        axes.set_yticks(rows, [short(name) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, max(before.max(), 1) * 1.18)
        axes.set_xlabel("channels")
        legend(axes)
    else:
        figure = blank(11, 4.6)
        axes = figure.subplots()
        style(axes, title)
        _profile(axes, before, DENSE, "before")
        _profile(axes, after, THIN, "after")
        sparse_names(axes, names)
        axes.set_ylabel("channels")
        axes.set_ylim(0, before.max() * 1.08)
        legend(axes)
    return figure


def distribution(
    gammas: Mapping[str, Sequence[float]], cut: float | None = None, removed: Mapping[str, Sequence[bool]] | None = None
) -> Figure:
    """All |gamma| of the network: histogram on a logarithmic axis, and the same values sorted, with the cut.

    A good threshold lies in an empty range of the histogram, where the sorted curve is steep; elsewhere the cut removes
    channels that matter.
    """
    values, gone = magnitudes(gammas, cut, removed)
    order = np.argsort(values, kind="stable")
    values, gone = values[order], gone[order]
    floor, shown, zeros = visible(values)
    figure = blank(10, 3.8)
    left, right = figure.subplots(1, 2)
    style(left, "All gammas")
    top = max(shown.max() * 1.1, floor * 10)
    bins = np.geomspace(floor * 0.999, top, 61)
    left.hist([shown[~gone], shown[gone]], bins=list(bins), stacked=True, color=[THIN, CUT], label=["kept", "removed"])
    left.set_xscale("log")
    left.set_xlabel("|gamma|")
    left.set_ylabel("channels")
    if zeros:
        left.set_xlabel(f"|gamma|  (leftmost bin: {formatting.count(zeros)} at or below {floor:.0e})")
        others = float(np.histogram(shown, bins)[0][1:].max())
        if zeros > 2.5 * others > 0:
            # A tall bar of zeros would flatten all others: it is clipped, and its height is written beside it.
            left.set_ylim(0, 1.6 * others)
            left.annotate(
                f"{formatting.count(zeros)} ↑",
                (bins[1], 1.52 * others),
                xytext=(3, 0),
                textcoords="offset points",
                va="top",
                fontsize=8.5,
                color=CUT,
            )
    style(right, f"Sorted: {100 * gone.mean():.1f}% of {formatting.count(len(values))} removed")
    share = 100 * (np.arange(len(values)) + 0.5) / len(values)
    right.plot(share, shown, color=THIN, linewidth=1.8, drawstyle="steps-mid")
    if gone.any():
        # Floors and rounding keep some channels below the threshold and remove some above: mark the removed ones.
        right.plot(share[gone], shown[gone], linestyle="none", marker=".", markersize=2.5, color=CUT)
    right.set_yscale("log")
    right.set_ylim(floor * 0.6, top * 1.6)
    right.set_xlim(0, 100)
    right.set_xlabel("share of channels, %")
    right.set_ylabel("|gamma|")
    if cut is not None and cut > 0:
        left.axvline(max(cut, floor), color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label=f"cut at {cut:.3g}")
        right.axhline(max(cut, floor), color=INK, linewidth=1.1, linestyle=(0, (5, 3)))
    legend(left)
    return figure


def by_layer(
    gammas: Mapping[str, Sequence[float]], cut: float | None = None, removed: Mapping[str, Sequence[bool]] | None = None
) -> Figure:
    """Per layer: the spread of |gamma| (line: all, bar: middle half, dot: median), the cut, and the share removed."""
    names = [name for name in gammas if len(gammas[name])]
    columns = [magnitudes({name: gammas[name]}, None, None)[0] for name in names]
    floor, _, _ = visible(np.concatenate(columns))
    quantiles = np.array([np.quantile(np.maximum(column, floor), (0, 0.25, 0.5, 0.75, 1)) for column in columns])
    share = np.array([magnitudes({name: gammas[name]}, cut, removed)[1].mean() for name in names])
    figure = blank(float(np.clip(2.4 + 0.2 * len(names), 7, 13)), 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    style(upper, "Spread of |gamma| in every layer")
    at = np.arange(len(names))
    thick = float(np.clip(260 / len(names), 1.6, 7))
    upper.vlines(at, quantiles[:, 0], quantiles[:, 4], color=DENSE, linewidth=max(1.0, thick / 3))
    upper.vlines(at, quantiles[:, 1], quantiles[:, 3], color=THIN, linewidth=thick)
    upper.plot(
        at,
        quantiles[:, 2],
        linestyle="none",
        marker="o",
        markersize=max(2.0, thick / 1.8),
        color="white",
        markeredgecolor=INK,
        markeredgewidth=0.7,
    )
    upper.set_yscale("log")
    upper.set_ylim(floor * 0.6, quantiles.max() * 1.8)
    upper.set_ylabel("|gamma|")
    if cut is not None and cut > 0:
        upper.axhline(max(cut, floor), color=CUT, linewidth=1.1, linestyle=(0, (5, 3)), label=f"cut at {cut:.3g}")
        legend(upper)
    style(lower, "")
    lower.bar(at, 100 * share, color=CUT, width=0.8)
    lower.set_ylim(0, 100)
    lower.set_ylabel("removed, %")
    sparse_names(lower, names)
    return figure


def _profile(axes: Axes, values: np.ndarray[Any, Any], color: str, label: str) -> None:
    axes.stairs(values, np.arange(len(values) + 1) - 0.5, fill=True, color=color, label=label, linewidth=0)


def visible(values: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any], int]:
    """A floor for the logarithmic axis, the values lifted to it, and how many were lifted (exact zeros among them)."""
    top = float(values.max()) if len(values) else 1.0
    floor = max(top, 1e-30) * 1e-6
    positive = values[values > floor]
    if len(positive):
        floor = max(floor, 10 ** np.floor(np.log10(positive.min()) - 0.3))
    return floor, np.maximum(values, floor), int((values <= floor).sum())


def magnitudes(
    gammas: Mapping[str, Sequence[float]], cut: float | None, removed: Mapping[str, Sequence[bool]] | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All |gamma| in one array, and which are removed: as given, else those not above the cut."""
    values = np.concatenate([np.abs(np.asarray(column, dtype=float)) for column in gammas.values()])
    values = np.nan_to_num(values, nan=0.0, posinf=0.0)
    if removed is not None and all(name in removed for name in gammas):
        return values, np.concatenate([np.asarray(removed[name], dtype=bool) for name in gammas])
    return values, (values <= cut) if cut is not None else np.zeros(len(values), dtype=bool)
