"""Accuracy against measured latency, and against bytes: one mark per method and share."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.sparsity import table

COLORS = {
    "dense": "black", "int8": "#8a5fbf", "ternary": "#b0762a", "unstructured, global": "#c8321e",
    "unstructured, per layer": "#e58a7d", "2:4": "#d64f9b", "low rank": "#2f8f8f", "filters": "#8ab81f",
    "thin, taught": "#7a8699", "thin, not taught": "#b9c2cf", "slimming, L1": "#6fa8e8", "slimming, target": "#1f5fbf",
}  # fmt: skip


def draw(results: dict[str, Any], folder: Path) -> None:
    """``latency.png``: ONNX Runtime at batch 1 and 64, eager torch and CSR at batch 64. ``bytes.png``: three forms."""
    batches = results["latency"]["batches"]
    accuracy = {name: [r["accuracy"] for r in by_seed.values()] for name, by_seed in table.by_method(results).items()}
    panels = {
        "ONNX Runtime, batch 1": {n: [c["ratio"]] for n, c in batches["1"]["onnx"].items()},
        "ONNX Runtime, batch 64": {n: [c["ratio"]] for n, c in batches["64"]["onnx"].items()},
        "torch, batch 64 (faint: zeros as CSR)": {
            n: [c["ratio"], *([batches["64"]["csr"][n]["ratio"]] if n in batches["64"]["csr"] else [])]
            for n, c in batches["64"]["torch"].items()
        },
    }
    _panels(accuracy, panels, "time, share of the dense network's in the same runtime", folder / "latency.png")
    forms: dict[str, dict[str, list[float]]] = {
        "as plain safetensors": {},
        "CSR": {},
        "smallest: zipped or own form": {},
    }
    for name, by_seed in table.by_method(results).items():
        each = list(by_seed.values())
        size = {form: table.mean(each, "bytes", form) for form in table.FORMS}
        plain = size["dense"] if size["dense"] is not None else size["own"]
        if plain is not None:
            forms["as plain safetensors"][name] = [plain / 1000]
        if size["csr"] is not None:
            forms["CSR"][name] = [size["csr"] / 1000]
        forms["smallest: zipped or own form"][name] = [min(v for v in size.values() if v is not None) / 1000]
    _panels(accuracy, forms, "kB", folder / "bytes.png")


def _panels(accuracy: dict[str, list[float]], panels: dict[str, dict[str, list[float]]], label: str, to: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fig = Figure(figsize=(13, 5.2), layout="constrained")
    many = fig.subplots(1, len(panels), sharey=True)
    for axes, (title, points) in zip(many, panels.items(), strict=True):
        for name, values in points.items():
            y = accuracy[name]
            spread = statistics.stdev(y) if len(y) > 1 else 0.0
            for i, value in enumerate(values):
                axes.errorbar(
                    value, statistics.mean(y), yerr=spread, color=_color(name), marker=_mark(name), markersize=7,
                    markerfacecolor="none" if "int8" in name else _color(name), linewidth=1, capsize=2,
                    alpha=0.35 if i else 1.0,
                )  # fmt: skip
        axes.set_xscale("log")
        ticks = _ticks([v for values in points.values() for v in values])
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(label, fontsize=9)
        axes.grid(linewidth=0.4, alpha=0.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    many[0].set_ylabel("test accuracy, %")
    shown = {_family(name): Line2D([], [], color=_color(name), marker="o", linestyle="none") for name in accuracy}
    shown |= {
        "50% of the weights removed": Line2D([], [], color="0.4", marker="o", linestyle="none"),
        "80%": Line2D([], [], color="0.4", marker="v", linestyle="none"),
        "as int8": Line2D([], [], color="0.4", marker="o", markerfacecolor="none", linestyle="none"),
    }
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    fig.savefig(to, dpi=110, metadata={"Software": None})


def _ticks(values: list[float]) -> list[float]:
    steps = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)]
    low, high = min(values), max(values)
    return [s for s in steps if low / 2.1 <= s <= high * 2.1]


def _family(name: str) -> str:
    return max((family for family in COLORS if name.startswith(family)), key=len)


def _color(name: str) -> str:
    return COLORS[_family(name)]


def _mark(name: str) -> str:
    return "v" if "80%" in name else "o" if "50%" in name else "s"
