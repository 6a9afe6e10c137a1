"""Results as a table and a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.page import fill

MARKS = "<!-- results: written by the script -->", "<!-- end of results -->"


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per contender, best mean test accuracy first."""
    seeds: dict[str, list[dict[str, Any]]] = {}
    for key, found in results.items():
        seed, _, name = key.partition("/")
        if seed.startswith("seed"):
            seeds.setdefault(name, []).append(found)
    correlation: dict[str, list[float]] = {}
    for found in seeds.get("leave one out", []):
        for name, value in found["correlation"].items():
            correlation.setdefault(f"criterion/{name}", []).append(value)
    made = []
    for name, found in seeds.items():
        if name == "leave one out":
            continue
        row = {"name": name, "seeds": len(found)}
        for key in ("test", "cut", "macs", "params", "score_seconds"):
            row[key] = _spread([f[key] for f in found if key in f])
        row["correlation"] = _spread(correlation.get(name, []))
        made.append(row)
    return sorted(made, key=lambda r: -r["test"][0])


def _spread(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(results: dict[str, Any]) -> str:
    """The table of the README."""

    def cell(pair: tuple[float, float] | None, digits: int = 2) -> str:
        return "" if pair is None else f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"

    lines = [
        "| | test accuracy, fine-tuned | held-out accuracy, after the cut | rank correlation with leave-one-out |"
        " MACs kept | parameters kept | seconds to score |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows(results):
        macs = "" if row["macs"] is None else f"{row['macs'][0]:.3f}"
        params = "" if row["params"] is None else f"{row['params'][0]:.3f}"
        seconds = "" if row["score_seconds"] is None else f"{row['score_seconds'][0]:.2f}"
        lines.append(
            f"| {row['name'].removeprefix('criterion/')} | {cell(row['test'])} | {cell(row['cut'])} |"
            f" {cell(row['correlation'])} | {macs} | {params} | {seconds} |"
        )
    return "\n".join(lines)


def write_readme(path: Path, results: dict[str, Any]) -> None:
    """Put the table between the markers of the README."""
    fill(path, MARKS, markdown(results))


def draw(results: dict[str, Any], path: Path) -> None:
    """Left: accuracy after fine-tuning and after the cut. Right: rank correlation with leave-one-out."""
    from matplotlib.figure import Figure

    found = rows(results)
    names = [r["name"].removeprefix("criterion/").replace("schedule/", "schedule: ") for r in found]
    fig = Figure(figsize=(11, 1.4 + 0.27 * len(found)), layout="constrained")
    left, middle, right = fig.subplots(1, 3, sharey=True, width_ratios=(1.3, 1, 1))
    place = range(len(found))
    for axes, key, color, title in (
        (left, "test", "#1f5fbf", "test accuracy after fine-tuning, %"),
        (middle, "cut", "#c8321e", "held-out accuracy after the cut, %"),
        (right, "correlation", "#3d7a4a", "rank correlation with leave-one-out"),
    ):
        shown = [(i, r[key]) for i, r in zip(place, found, strict=True) if r[key] is not None]
        axes.errorbar(
            [v[0] for _, v in shown], [i for i, _ in shown], xerr=[v[1] for _, v in shown], fmt="o", color=color,
            markersize=4, linewidth=1.2, capsize=2,
        )  # fmt: skip
        axes.set_title(title, loc="left", fontsize=9)
        axes.grid(axis="x", linewidth=0.4, alpha=0.5)
        axes.axvline(0, linewidth=0.6, color="#8a94a3") if key == "correlation" else None
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
    for name, style in (("criterion/uniform", "--"), ("criterion/random", ":")):
        at = [r["test"][0] for r in found if r["name"] == name]
        if at:
            left.axvline(at[0], linestyle=style, linewidth=0.9, color="#8a94a3", zorder=0)
    left.set_yticks(list(place), names, fontsize=8)
    left.invert_yaxis()
    fig.savefig(path, dpi=120, metadata={"Software": None})
