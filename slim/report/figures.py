"""The pictures of a run: what it cost and kept, how it got there, and (from :mod:`slim.report.cuts`) the cut.

Every function takes plain data and returns a ``matplotlib.figure.Figure`` made without pyplot: no global state, no
display, the same bytes for the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slim.report import formatting
from slim.report.cuts import by_layer, distribution, widths
from slim.report.metric import Metric, metric_of
from slim.report.ridges import ridges
from slim.report.style import CUT, DENSE, FAINT, INK, THIN, blank, legend, literal, png, say, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "all_figures",
    "by_layer",
    "distribution",
    "history",
    "png",
    "ridges",
    "scatter",
    "slimming",
    "summary",
    "widths",
]


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
        out["history"] = history(record["history"], metric_of(record))
    if any(phase.get("slimmed") for phase in (record.get("phases") or {}).values()):
        out["slimming"] = slimming(record)
    return out


def summary(record: Mapping[str, Any]) -> Figure:
    """Left: the metric of every network of the run. Right: what is left of the dense network's cost."""
    figure = blank(9.2, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _metric_bars(left, record["rows"], metric_of(record))
    _cost_bars(right, record["rows"])
    return figure


def _metric_bars(left: Axes, rows: Mapping[str, Mapping[str, Any]], metric: Metric) -> None:
    shown = [
        (formatting.LABELS[name], value)
        for name in formatting.LABELS
        if (value := formatting.number((rows.get(name) or {}).get("metric"))) is not None
    ]
    style(left, f"{metric.name} through the run")
    if shown:
        values = [metric.scaled(value) for _, value in shown]
        bars = left.bar(
            [label for label, _ in shown], values, color=[DENSE, *[THIN] * len(shown)][: len(shown)], width=0.7
        )
        for bar, (label, _) in zip(bars, shown, strict=True):
            bar.set_color(DENSE if label in ("dense", "sparse") else THIN)
        for text in left.bar_label(
            bars,
            [f"{value:.1f}" if metric.percent else f"{value:.3g}" for value in values],
            padding=3,
            color=INK,
            fontsize=9,
        ):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        left.set_ylim(*metric.limits([value for _, value in shown]))
        left.set_ylabel(literal(metric.label))
        left.axhline(values[0], color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        left.tick_params(axis="x", labelsize=8.5 if len(shown) > 4 else 9)


def _cost_bars(right: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    base = next((rows[name] for name in ("dense", "sparse") if rows.get(name)), {})
    thin = next((rows[name] for name in ("finetuned", "recovered", "rebuilt") if rows.get(name)), {})
    kinds = {
        "channels": "channels",
        "params": "parameters",
        "macs": "MACs",
        "latency_ms_b1": "time, batch 1",
        "latency_ms_b64": "time, batch 64",
    }
    style(right, "What is left of the dense network", grid="x")
    kept = [
        (label, now / then)
        for key, label in kinds.items()
        if (now := formatting.number(thin.get(key))) is not None and (then := formatting.number(base.get(key)))
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
        say(right, "no thin network yet")


def history(history: Mapping[str, Mapping[str, Sequence[float]]], metric: Metric | None = None) -> Figure:
    """Losses and the metric over the epochs of all phases, one after the other."""
    metric = metric or Metric()
    figure = blank(10, 3.6)
    left, right = figure.subplots(1, 2)
    style(left, "Loss")
    style(right, metric.label)
    start = 0
    seen: set[str] = set()
    for phase, curves in history.items():
        length = max((len(values) for values in curves.values()), default=0)
        for name, values in curves.items():
            if "loss" not in name and metric.name not in name:
                continue
            axes, scale = (left, 1.0) if "loss" in name and metric.name != "loss" else (right, metric.scaled(1.0))
            color = THIN if name.startswith("val") else CUT if name.startswith("test") else FAINT
            label = None if name in seen else literal(name.replace("_", " ").replace("/", " "))
            seen.add(name)
            numbers = {epoch: formatting.number(value) for epoch, value in enumerate(values, start=start + 1)}
            points = {epoch: scale * number for epoch, number in numbers.items() if number is not None}
            axes.plot(
                list(points),
                list(points.values()),
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
        axes.locator_params(axis="x", integer=True)
        axes.margins(y=0.14)
        legend(axes)
    return figure


def slimming(record: Mapping[str, Any]) -> Figure:
    """MACs of the network in every epoch of a run that is rebuilt while it trains: what each later epoch costs."""
    figure = blank(7, 3.4)
    axes = figure.subplots()
    style(axes, "MACs of one forward while training")
    rows: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    now = formatting.number(next((row["macs"] for row in rows.values() if row and row.get("macs")), None))
    start, edges, heights = 0, [0.5], []
    for name, phase in record["phases"].items():
        epochs = int(phase.get("epochs") or 0)
        if name.startswith("baseline") or not epochs:
            continue
        if name.startswith("finetune"):
            now = formatting.number((rows.get("finetuned") or {}).get("macs")) or now
        shrunk = {int(entry["epoch"]): float(entry["macs"]) for entry in phase.get("slimmed") or []}
        for epoch in range(1, epochs + 1):
            heights.append((now or 0.0) / 1e6)
            edges.append(start + epoch + 0.5)
            now = shrunk.get(epoch, now)
        start += epochs
    axes.stairs(heights, edges, fill=True, color=THIN)
    axes.set_xlabel("epoch (sparse training, then fine-tuning)")
    axes.set_ylabel("million MACs")
    axes.set_xlim(0.5, max(start, 1) + 0.5)
    axes.set_ylim(0, max(heights, default=1.0) * 1.1 or 1)
    axes.locator_params(axis="x", integer=True)
    return figure


def scatter(points: Sequence[tuple[float, float, str]], metric: Metric | None = None) -> Figure:
    """Jobs of a sweep: ``(MACs kept in %, metric as its axis shows it, label)``."""
    metric = metric or Metric()
    figure = blank(7, 4)
    axes = figure.subplots()
    style(axes, f"{metric.name} against cost, one point per job")
    ordered = sorted(points)
    axes.plot([x for x, _, _ in ordered], [y for _, y, _ in ordered], color=DENSE, linewidth=1.2, zorder=1)
    axes.scatter([x for x, _, _ in ordered], [y for _, y, _ in ordered], color=THIN, s=34, zorder=2)
    for x, y, label in ordered if len(ordered) <= 30 else []:
        axes.annotate(literal(label), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8.5, color=INK)
    axes.set_xlabel("MACs kept, % of the dense network")
    axes.set_ylabel(literal(f"test {metric.label}"))
    axes.margins(0.1, 0.15)
    # Room around the points, but no share above the whole.
    axes.set_xlim(0, max(min(axes.get_xlim()[1], 104), ordered[-1][0] + 2))
    if metric.percent:
        axes.set_ylim(*(min(limit, 101) for limit in axes.get_ylim()))
    return figure
