"""Common style of all figures: colours, axes, legends and labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSE, THIN, CUT, INK, FAINT = "#c3c9d4", "#1f5fbf", "#c8321e", "#1b2430", "#8a94a3"


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, without a date or a version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def blank(wide: float, high: float) -> Figure:
    """An empty white figure of ``wide`` x ``high`` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), layout="constrained", facecolor="white")


def style(axes: Axes, title: str, grid: str = "y") -> None:
    """Title, spines, ticks and grid."""
    axes.set_title(literal(title), loc="left", fontsize=10.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis=grid, color="#e6e9ee", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend(axes: Axes) -> None:
    """Place the legend beside the title, outside of the axes."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 0.995),
            ncols=3,
            frameon=False,
            fontsize=8.5,
            borderaxespad=0.0,
            handlelength=1.4,
            columnspacing=1.2,
        )


def say(axes: Axes, text: str) -> None:
    """Text in place of a plot."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=FAINT, transform=axes.transAxes)


def literal(text: str) -> str:
    r"""Somebody's name as matplotlib draws it: no formula between two dollars, and no bytes that are no text.

    >>> literal("$5"), literal("caf\udce9")
    ('\\$5', 'caf\\udce9')
    """
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def short(name: str, limit: int = 34) -> str:
    """The end of a long name, which distinguishes layers."""
    return literal(name if len(name) <= limit else "…" + name[-limit + 1 :])


def sparse_names(axes: Axes, names: Sequence[str], most: int = 40) -> None:
    """Label every k-th layer, so that labels do not overlap."""
    step = -(-len(names) // most)
    at = list(range(0, len(names), step))
    axes.set_xticks(at, [short(names[index], 26) for index in at], rotation=90, fontsize=7.5)
    axes.set_xlim(-0.7, len(names) - 0.3)
    if step > 1:
        axes.set_xlabel(f"{len(names)} layers, every {_ordinal(step)} named", fontsize=9)


def _ordinal(value: int) -> str:
    return f"{value}{ {2: 'nd', 3: 'rd'}.get(value, 'th') }"
