"""The pictures of a run: what it cost and kept, widths before and after, and where the cut fell among the gammas.

Every function takes plain data and returns a ``matplotlib.figure.Figure`` made without pyplot: no global state, no
display, the same bytes for the same numbers.
They stay readable from 5 to 200 layers: up to ``NAMED`` layers each has its own
labelled row; beyond that the layers form one profile with every k-th name.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slim.report import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 44
DENSE, THIN, CUT, INK, FAINT = "#c3c9d4", "#1f5fbf", "#c8321e", "#1b2430", "#8a94a3"


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, without a date or a version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def all_figures(record: Mapping[str, Any]) -> dict[str, Figure]:
    """Every figure that the record has numbers for, by file name without ending."""
    out: dict[str, Figure] = {}
    if record.get("rows"):
        out["summary"] = summary(record)
    if record.get("widths"):
        out["widths"] = widths(record["widths"])
    if any(len(values) for values in (record.get("gammas") or {}).values()):
        gammas = record["gammas"]
        out["gammas"] = distribution(gammas, record.get("cut"), record.get("removed"))
        out["gammas_by_layer"] = by_layer(gammas, record.get("cut"), record.get("removed"))
    if record.get("history"):
        out["history"] = history(record["history"])
    return out


def summary(record: Mapping[str, Any]) -> Figure:
    """Left: accuracy of every network of the run. Right: what is left of the dense network's cost."""
    rows: Mapping[str, Mapping[str, Any]] = record["rows"]
    figure = _figure(9.2, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    shown = [
        (words.LABELS[name], value)
        for name in words.LABELS
        if (value := words.number((rows.get(name) or {}).get("accuracy"))) is not None
    ]
    _style(left, "Accuracy through the run")
    if shown:
        values = [100 * value for _, value in shown]
        bars = left.bar(
            [label for label, _ in shown], values, color=[DENSE, *[THIN] * len(shown)][: len(shown)], width=0.7
        )
        for bar, (label, _) in zip(bars, shown, strict=True):
            bar.set_color(DENSE if label in ("dense", "sparse") else THIN)
        for text in left.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, color=INK, fontsize=9):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        left.set_ylim(0, max(values) * 1.13 or 1)
        left.set_ylabel("accuracy, %")
        left.axhline(values[0], color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        left.tick_params(axis="x", labelsize=8.5 if len(shown) > 4 else 9)
    base = next((rows[name] for name in ("dense", "sparse") if rows.get(name)), {})
    thin = next((rows[name] for name in ("finetuned", "recovered", "rebuilt") if rows.get(name)), {})
    kinds = {
        "channels": "channels",
        "params": "parameters",
        "macs": "MACs",
        "latency_ms_b1": "time, batch 1",
        "latency_ms_b64": "time, batch 64",
    }
    _style(right, "What is left of the dense network", grid="x")
    kept = [
        (label, now / then)
        for key, label in kinds.items()
        if (now := words.number(thin.get(key))) is not None and (then := words.number(base.get(key)))
    ]
    if kept:
        names, shares = [label for label, _ in kept], [100 * share for _, share in kept]
        right.barh(names, [100.0] * len(names), color="#eceff3", height=0.62)
        bars = right.barh(names, shares, color=[CUT if share > 100 else THIN for share in shares], height=0.62)
        right.bar_label(bars, [f"{share:.1f}%" for share in shares], padding=3, color=INK, fontsize=9)
        right.invert_yaxis()
        right.set_xlim(0, max(116.0, 1.2 * max(shares)))
        right.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100%"])
    else:
        _say(right, "no thin network yet")
    return figure


def widths(widths: Mapping[str, Sequence[int]]) -> Figure:
    """Channels of every layer before (grey) and after (blue)."""
    names = list(widths)
    before = np.array([float(widths[name][0]) for name in names])
    after = np.array([float(widths[name][1]) for name in names])
    gone = 1 - after.sum() / max(before.sum(), 1)
    total, left = words.count(before.sum()), words.count(after.sum())
    title = f"Channels per layer: {total} before, {left} after ({-100 * gone:+.1f}%)"
    if len(names) <= NAMED:
        figure = _figure(8.6, 1.3 + 0.27 * max(len(names), 3))
        axes = figure.subplots()
        _style(axes, title, grid="x")
        rows = np.arange(len(names))
        axes.barh(rows, before, color=DENSE, height=0.74, label="before")
        axes.barh(rows, after, color=THIN, height=0.74, label="after")
        for row, (wide, thin) in enumerate(zip(before, after, strict=True)):
            text = f"{thin:.0f} of {wide:.0f}" if thin != wide else f"{wide:.0f}, all kept"
            axes.annotate(
                text, (wide, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        axes.set_yticks(rows, [_short(name) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, max(before.max(), 1) * 1.18)
        axes.set_xlabel("channels")
        _legend(axes)
    else:
        figure = _figure(11, 4.6)
        axes = figure.subplots()
        _style(axes, title)
        _profile(axes, before, DENSE, "before")
        _profile(axes, after, THIN, "after")
        _sparse_names(axes, names)
        axes.set_ylabel("channels")
        axes.set_ylim(0, before.max() * 1.08)
        _legend(axes)
    return figure


def distribution(
    gammas: Mapping[str, Sequence[float]], cut: float | None = None, removed: Mapping[str, Sequence[bool]] | None = None
) -> Figure:
    """All |gamma| of the network: histogram on a logarithmic axis, and the same values sorted, with the cut.

    A clean cut falls into an empty valley of the histogram, at the foot of a cliff in the sorted curve. A cut through a
    hill takes living channels.
    """
    values, gone = _flat(gammas, cut, removed)
    order = np.argsort(values, kind="stable")
    values, gone = values[order], gone[order]
    floor, shown, zeros = _visible(values)
    figure = _figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    _style(left, "All gammas")
    top = max(shown.max() * 1.1, floor * 10)
    bins = np.geomspace(floor * 0.999, top, 61)
    left.hist([shown[~gone], shown[gone]], bins=list(bins), stacked=True, color=[THIN, CUT], label=["kept", "removed"])
    left.set_xscale("log")
    left.set_xlabel("|gamma|")
    left.set_ylabel("channels")
    if zeros:
        left.set_xlabel(f"|gamma|  (leftmost bin: {words.count(zeros)} at or below {floor:.0e})")
        others = float(np.histogram(shown, bins)[0][1:].max())
        if zeros > 2.5 * others > 0:
            # A tall bar of zeros would flatten everything there is to see; it leaves the frame and says its height.
            left.set_ylim(0, 1.6 * others)
            left.annotate(
                f"{words.count(zeros)} ↑",
                (bins[1], 1.52 * others),
                xytext=(3, 0),
                textcoords="offset points",
                va="top",
                fontsize=8.5,
                color=CUT,
            )
    _style(right, f"Sorted: {100 * gone.mean():.1f}% of {words.count(len(values))} removed")
    share = 100 * (np.arange(len(values)) + 0.5) / len(values)
    right.plot(share, shown, color=THIN, linewidth=1.8, drawstyle="steps-mid")
    if gone.any():
        # Floors and rounding keep some channels below the cut and take some above it: mark what really went.
        right.plot(share[gone], shown[gone], linestyle="none", marker=".", markersize=2.5, color=CUT)
    right.set_yscale("log")
    right.set_ylim(floor * 0.6, top * 1.6)
    right.set_xlim(0, 100)
    right.set_xlabel("share of channels, %")
    right.set_ylabel("|gamma|")
    if cut is not None and cut > 0:
        left.axvline(max(cut, floor), color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label=f"cut at {cut:.3g}")
        right.axhline(max(cut, floor), color=INK, linewidth=1.1, linestyle=(0, (5, 3)))
    _legend(left)
    return figure


def by_layer(
    gammas: Mapping[str, Sequence[float]], cut: float | None = None, removed: Mapping[str, Sequence[bool]] | None = None
) -> Figure:
    """Per layer: the spread of |gamma| (line: all, bar: middle half, dot: median), the cut, and the share removed."""
    names = [name for name in gammas if len(gammas[name])]
    columns = [_flat({name: gammas[name]}, None, None)[0] for name in names]
    floor, _, _ = _visible(np.concatenate(columns))
    quantiles = np.array([np.quantile(np.maximum(column, floor), (0, 0.25, 0.5, 0.75, 1)) for column in columns])
    share = np.array([_flat({name: gammas[name]}, cut, removed)[1].mean() for name in names])
    figure = _figure(float(np.clip(2.4 + 0.2 * len(names), 7, 13)), 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    _style(upper, "Spread of |gamma| in every layer")
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
        _legend(upper)
    _style(lower, "")
    lower.bar(at, 100 * share, color=CUT, width=0.8)
    lower.set_ylim(0, 100)
    lower.set_ylabel("removed, %")
    _sparse_names(lower, names)
    return figure


def history(history: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Losses and accuracies over the epochs of all phases, one after the other."""
    figure = _figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    _style(left, "Loss")
    _style(right, "Accuracy, %")
    start = 0
    seen: set[str] = set()
    for phase, curves in history.items():
        length = max((len(values) for values in curves.values()), default=0)
        for name, values in curves.items():
            if "loss" not in name and "acc" not in name:
                continue
            axes, scale = (left, 1.0) if "loss" in name else (right, 100.0)
            color = THIN if name.startswith("val") else CUT if name.startswith("test") else FAINT
            label = None if name in seen else name.replace("_", " ").replace("/", " ")
            seen.add(name)
            points = [np.nan if (point := words.number(value)) is None else scale * point for value in values]
            axes.plot(
                start + 1 + np.arange(len(points)),
                points,
                color=color,
                linewidth=1.8,
                marker="o" if len(points) < 3 else None,
                label=label,
            )
        for axes in (left, right):
            if start:
                axes.axvline(start + 0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            if length:
                axes.annotate(
                    phase,
                    ((start + 0.5 + length / 2), 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, -3),
                    textcoords="offset points",
                    ha="center",
                    va="top",
                    fontsize=8,
                    color=FAINT,
                )
        start += length
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, max(start, 1) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.14)
        _legend(axes)
    return figure


def scatter(points: Sequence[tuple[float, float, str]]) -> Figure:
    """Jobs of a sweep: ``(MACs kept in %, accuracy in %, label)``."""
    figure = _figure(7, 4)
    axes = figure.subplots()
    _style(axes, "Accuracy against cost, one point per job")
    ordered = sorted(points)
    axes.plot([x for x, _, _ in ordered], [y for _, y, _ in ordered], color=DENSE, linewidth=1.2, zorder=1)
    axes.scatter([x for x, _, _ in ordered], [y for _, y, _ in ordered], color=THIN, s=34, zorder=2)
    for x, y, label in ordered if len(ordered) <= 30 else []:
        axes.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8.5, color=INK)
    axes.set_xlabel("MACs kept, % of the dense network")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    axes.margins(0.1, 0.15)
    return figure


def _figure(wide: float, high: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), layout="constrained", facecolor="white")


def _style(axes: Axes, title: str, grid: str = "y") -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis=grid, color="#e6e9ee", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    """Beside the title, where it can cover nothing."""
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


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=FAINT, transform=axes.transAxes)


def _profile(axes: Axes, values: np.ndarray[Any, Any], color: str, label: str) -> None:
    axes.stairs(values, np.arange(len(values) + 1) - 0.5, fill=True, color=color, label=label, linewidth=0)


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else "…" + name[-limit + 1 :]


def _sparse_names(axes: Axes, names: Sequence[str], most: int = 40) -> None:
    """Label every k-th layer, so that the labels never touch."""
    step = -(-len(names) // most)
    at = list(range(0, len(names), step))
    axes.set_xticks(at, [_short(names[index], 26) for index in at], rotation=90, fontsize=7.5)
    axes.set_xlim(-0.7, len(names) - 0.3)
    if step > 1:
        axes.set_xlabel(f"{len(names)} layers, every {_ordinal(step)} named", fontsize=9)


def _ordinal(value: int) -> str:
    return f"{value}{ {2: 'nd', 3: 'rd'}.get(value, 'th') }"


def _visible(values: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any], int]:
    """A floor for the logarithmic axis, the values lifted to it, and how many were lifted (exact zeros among them)."""
    top = float(values.max()) if len(values) else 1.0
    floor = max(top, 1e-30) * 1e-6
    positive = values[values > floor]
    if len(positive):
        floor = max(floor, 10 ** np.floor(np.log10(positive.min()) - 0.3))
    return floor, np.maximum(values, floor), int((values <= floor).sum())


def _flat(
    gammas: Mapping[str, Sequence[float]], cut: float | None, removed: Mapping[str, Sequence[bool]] | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All |gamma| in one array and which of them went: as told, else whatever is not above the cut."""
    values = np.concatenate([np.abs(np.asarray(column, dtype=float)) for column in gammas.values()])
    values = np.nan_to_num(values, nan=0.0, posinf=0.0)
    if removed is not None and all(name in removed for name in gammas):
        return values, np.concatenate([np.asarray(removed[name], dtype=bool) for name in gammas])
    return values, (values <= cut) if cut is not None else np.zeros(len(values), dtype=bool)
