"""Layers x share: a heat map of the accuracy lost, and one curve per layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.sensitivity.result import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 40


def draw(result: Sensitivity, path: Path, title: str = "") -> None:
    """Write the figure as PNG."""
    figure(result, title).savefig(path, dpi=130)


def figure(result: Sensitivity, title: str = "") -> Figure:
    """The figure of one network. Left: points of accuracy lost. Right: accuracy against share, the worst five named."""
    from matplotlib.figure import Figure

    names = list(result.accuracy)
    table = 100 * np.array([result.accuracy[n] for n in names])
    lost = 100 * result.whole - table
    fig = Figure(figsize=(12, min(14.0, max(3.6, 1.6 + 0.2 * len(names)))), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
    image = left.imshow(lost, aspect="auto", cmap="magma_r", vmin=0, vmax=max(1.0, float(lost.max())))
    left.set_xticks(range(len(result.shares)), [f"{s:.0%}" for s in result.shares])
    every = -(-len(names) // NAMED)
    left.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    left.set_xlabel("share of the layer's channels removed")
    left.set_title("accuracy lost, points", loc="left", fontsize=10)
    fig.colorbar(image, ax=left, shrink=0.8)
    worst = set(np.argsort(-lost.mean(1), kind="stable")[:5].tolist())
    shares = [0.0, *(100 * s for s in result.shares)]
    for i, name in enumerate(names):
        curve = [100 * result.whole, *table[i]]
        named: dict[str, Any] = (
            {"linewidth": 1.8, "label": name} if i in worst else {"linewidth": 0.8, "color": "#b8c0cc"}
        )
        right.plot(shares, curve, zorder=3 if i in worst else 2, **named)
    right.axhline(100 * result.whole, color="#1b2430", linewidth=0.8, linestyle=":")
    right.set_xlabel("share removed, %")
    right.set_ylabel("accuracy, %")
    right.legend(fontsize=7, frameon=False, title="most sensitive", title_fontsize=8, loc="lower left")
    right.set_title(f"{title + ', ' if title else ''}{result.images} held-out images", loc="left", fontsize=10)
    for axes in (left, right):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return fig
