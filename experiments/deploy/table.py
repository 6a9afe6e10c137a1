"""The table of the ladder, its picture, and whether the goals are met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GOALS = {"half int8": 4.0, "third int8": 6.0}
"""Rung -> times as fast as dense fp32 in the same runtime at batch 64, on a processor with VNNI or AMX."""


def markdown(results: dict[str, Any]) -> str:
    """One row for each network and rung."""
    head = ["network", "rung", "metric", "MACs", "bytes", "ms, batch 1", "faster", "ms, batch 64", "faster"]
    lines = [results.get("machine", ""), "", f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for name, found in results["networks"].items():
        base = found["rows"]["dense fp32"]
        for rung, row in found["rows"].items():
            times = " | ".join(f"{row[k]:.3g} | {base[k] / row[k]:.2f} x" for k in ("ms_b1", "ms_b64"))
            lines.append(f"| {name} | {rung} | {row['metric']:.4f} | {row['macs']:.2f} | {row['bytes']:,} | {times} |")
    return "\n".join(lines)


def short(results: dict[str, Any]) -> str:
    """A row for each network: times as fast as dense fp32 at batch 64, points of the metric, share of its bytes."""
    lines = []
    for name, found in results["networks"].items():
        base = found["rows"]["dense fp32"]
        rows = {rung: row for rung, row in found["rows"].items() if not rung.startswith("dense fp32")}
        cells = [
            f"{base['ms_b64'] / row['ms_b64']:.1f} x, {100 * (row['metric'] - base['metric']):+.1f}, "
            f"{row['bytes'] / base['bytes']:.0%}"
            for row in rows.values()
        ]
        lines = lines or [f"| | dense fp32 | {' | '.join(rows)} |", "|---" * (2 + len(rows)) + "|"]
        lines.append(f"| {name}, {found['metric']} | {100 * base['metric']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(results: dict[str, Any]) -> str:
    """Goal by goal and network by network: met or missed, with the figures."""
    lines = []
    for name, found in results["networks"].items():
        base = found["rows"]["dense fp32"]
        for rung, goal in GOALS.items():
            row = found["rows"][rung]
            faster, lost = base["ms_b64"] / row["ms_b64"], 100 * (base["metric"] - row["metric"])
            met = "met" if faster >= goal and lost <= 1 else "missed"
            lines.append(f"{name}, {rung}: {faster:.2f} x (goal {goal:g} x), {lost:+.2f} points lost: {met}")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Times as fast at batch 64, a panel for each network and a bar for each rung, with the points that it costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(results["networks"])
    figure, panels = pyplot.subplots(1, count, figsize=(1 + 3 * count, 3.4), sharey=True, layout="constrained")
    for axes, (name, found) in zip([panels] if count == 1 else panels, results["networks"].items(), strict=True):
        base = found["rows"]["dense fp32"]
        rows = {rung: row for rung, row in found["rows"].items() if not rung.endswith("eager")}
        faster = [base["ms_b64"] / row["ms_b64"] for row in rows.values()]
        labels = [
            f"{x:.1f} x, {100 * (row['metric'] - base['metric']):+.1f}"
            for x, row in zip(faster, rows.values(), strict=True)
        ]
        labels[list(rows).index("dense fp32")] = f"{100 * base['metric']:.1f}"
        colors = ["tab:blue" if rung.endswith("int8") else "lightsteelblue" for rung in rows]
        axes.bar_label(axes.barh(list(rows), faster, color=colors), labels, padding=3, fontsize=8)
        axes.set_title(f"{name}, {found['metric']}", fontsize=10)
        axes.set_xlim(0, 1.75 * max(faster))
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    what = "times as fast as dense fp32 in ONNX Runtime at batch 64; points of the metric gained or lost"
    figure.supxlabel(what, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
