"""The README's figure from a finished run: ``python docs/images/draw.py <run directory> [output.png]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from slim.files import write_atomic
from slim.report.style import CUT, DENSE, INK, THIN, png


def draw(record: dict) -> Figure:
    """Three panels: gammas and the cut, widths before and after, accuracy and what is left of the cost."""
    figure = Figure(figsize=(12.6, 3.5), layout="constrained", facecolor="white")
    gammas, widths, costs = figure.subplots(1, 3, width_ratios=(1.15, 1.1, 1))
    values = np.concatenate([np.abs(column) for column in record["gammas"].values()])
    gone = np.concatenate([np.asarray(column, bool) for column in record["removed"].values()])
    floor = max(values.max() * 1e-6, 1e-12)
    bins = np.geomspace(floor, values.max() * 1.1, 55)
    shown = np.maximum(values, floor)
    gammas.hist([shown[~gone], shown[gone]], bins, stacked=True, color=[THIN, CUT], label=["kept", "removed"])
    gammas.set_xscale("log")
    gammas.set(xlabel="|gamma| after sparse training", ylabel="channels")
    gammas.legend(frameon=False, fontsize=9, loc="upper center")
    _title(gammas, "One ranking over all layers")

    layers = [pair for pair in record["widths"].values() if pair[0] != pair[1]]
    at = np.arange(len(layers))
    widths.bar(at, [pair[0] for pair in layers], color=DENSE, width=0.8, label="before")
    widths.bar(at, [pair[1] for pair in layers], color=THIN, width=0.8, label="after")
    widths.set(xlabel="layer", ylabel="channels", xticks=at, xticklabels=[str(index + 1) for index in at])
    widths.legend(frameon=False, fontsize=9, loc="upper left")
    _title(widths, "Channels per layer")

    rows = record["rows"]
    dense, thin = rows["dense"], rows["finetuned"]
    names = {
        "params": "parameters",
        "macs": "MACs",
        "latency_ms_b1": "time, batch 1",
        "latency_ms_b64": "time, batch 64",
    }
    left = [100 * thin[key] / dense[key] for key in names]
    costs.barh(list(names.values()), [100] * len(names), color="#eceff3", height=0.62)
    costs.bar_label(
        costs.barh(list(names.values()), left, color=THIN, height=0.62), [f"{x:.0f}%" for x in left], padding=3
    )
    costs.invert_yaxis()
    costs.set(xlim=(0, max(118, 1.15 * max(left))), xticks=[0, 50, 100])
    costs.set_xlabel("% of the dense network's")
    accuracies = {"dense": dense, "cut": rows["rebuilt"], "fine-tuned": thin}
    told = ", ".join(f"{name} {100 * row['metric']:.1f}%" for name, row in accuracies.items() if row.get("metric"))
    figure.supxlabel(f"test accuracy: {told}", fontsize=10, x=0.995, ha="right", color=INK)
    _title(costs, "What is left")
    return figure


def _title(axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("vgg_slim.png")
    write_atomic(target, png(draw(json.loads((run / "report.json").read_text()))))
    print(target)
