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
    """Metric against times as fast at batch 64, a line for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, found in results["networks"].items():
        base = found["rows"]["dense fp32"]
        rows = {rung: row for rung, row in found["rows"].items() if not rung.endswith("eager")}
        faster = [base["ms_b64"] / row["ms_b64"] for row in rows.values()]
        lost = [100 * (row["metric"] - base["metric"]) for row in rows.values()]
        axes.plot(faster, lost, marker="o", linestyle=":", label=name)
        for x, y, rung in zip(faster, lost, rows, strict=True):
            axes.annotate(rung, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("times as fast as dense fp32 in ONNX Runtime, batch 64")
    axes.set_ylabel("points against dense fp32")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
