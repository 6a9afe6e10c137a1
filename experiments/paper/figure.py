"""What each way of training costs: accuracy at the cut, and points to the dense network after the same epochs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.paper.table import by_way

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parent / "paper.png"
WAYS = {"target": "target", "paper": "L1, the paper's", "uniform": "uniform", "torch-pruning": "Torch-Pruning"}
COLORS = {"": "darkorange", "-taught": "tab:blue"}
LEAST = -8.0
"""Points to the dense network; what lost more stands at the edge with its number."""
SIZES = {"core": "5,000 images", "processor": "50,000 images", "paper": "the paper's size"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """One row of two panels per scale, network and budget that two ways or more have cut; nothing without any."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found = {scale: by_way(results, scale) for scale in SIZES}
    ways = ((scale, where, way.removesuffix("-taught")) for scale in SIZES for where, way in found[scale])
    cut = Counter((scale, where) for scale, where, way in ways if way in WAYS)
    places = [place for place, count in cut.items() if count > 1]
    if not places:
        return
    figure = Figure(figsize=(9.5, 0.9 + 1.65 * len(places)), layout="constrained")
    panels = figure.subplots(len(places), 2, squeeze=False, sharex="col", sharey=True)
    for (left, right), (scale, where) in zip(panels, places, strict=True):
        network, _, budget = where.partition("/")
        _points(left, found[scale], where, "at_cut", 100)
        _points(right, found[scale], where, "to_dense", 1)
        dense = [row["accuracy"] for row in found[scale].get((network, "dense"), {}).values()]
        if dense:
            left.axvline(100 * statistics.mean(dense), color="0.5", linewidth=1)
        right.axvline(0, color="0.5", linewidth=1)
        left.set_title(f"{network}, {_said(budget)}, {SIZES[scale]}", loc="left", fontsize=10)
    panels[0][0].set_ylim(len(WAYS) - 0.4, -0.6)
    panels[-1][0].set_xlabel("accuracy at the cut, before fine-tuning, %", fontsize=9)
    panels[-1][1].set_xlabel("after all epochs: points to the dense network", fontsize=9)
    names = {"labels alone": COLORS[""], "with the dense network as teacher": COLORS["-taught"], "dense": "0.5"}
    shown = [
        Line2D([], [], color=color, marker="" if name == "dense" else "o", linestyle="-" if name == "dense" else "none")
        for name, color in names.items()
    ]
    figure.legend(shown, list(names), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)


def _said(budget: str) -> str:
    kind, _, amount = budget.partition("-")
    return f"{float(amount):.0%} of the {'channels removed' if kind == 'ratio' else 'MACs'}"


def _points(axes: Axes, found: Mapping[tuple[str, str], Mapping[int, Any]], where: str, key: str, unit: float) -> None:
    """A line per way: the mean large, every seed small; taught ones below."""
    for height, way in enumerate(WAYS):
        for down, taught in ((-0.16, ""), (0.16, "-taught")):
            values = [unit * row[key] for row in found.get((where, way + taught), {}).values() if key in row]
            if values:
                style = {"color": COLORS[taught], "linestyle": "none", "clip_on": False}
                mean, y = statistics.mean(values), height + down
                if mean < LEAST:
                    axes.plot([LEAST], [y], marker="<", markersize=8, **style)
                    axes.text(LEAST + 0.25, y, f"{mean:.0f}", color=COLORS[taught], fontsize=9, va="center")
                    continue
                axes.plot(values, [y] * len(values), marker="o", markersize=3, alpha=0.5, **style)
                axes.plot([mean], [y], marker="o", markersize=8, **style)
    axes.set_yticks(range(len(WAYS)), list(WAYS.values()), fontsize=9)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
