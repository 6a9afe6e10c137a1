"""Accuracy against the share of channels removed, at the cut: one curve per law, before and after recovery."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

import slim
from experiments.nocliff import jobs
from experiments.nocliff.loop import accuracy
from slim.recovery import absorb, recalibrate

RATIOS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
IMAGES = 1_000  # of the test set: a curve is a picture, the table is on all 10,000
BATCHES = 4  # of 250 images, for the BatchNorm statistics
# By network, the name of a curve and the stored network it is of, all of seed 0.
NETWORKS: dict[str, dict[str, str]] = {
    "vgg": {
        "none (dense)": "vgg-dense-s0",
        "l1": "vgg-l1-whole-s0",
        "prox": "vgg-prox-whole-s0",
        "polarization": "vgg-polarization-whole-s0",
        "l0": "vgg-l0-whole-s0",
        "target 60%": "vgg-target-ratio0.6-s0",
    },
    "resnet20": {
        "none (dense)": "resnet20-dense-s0",
        "l1": "resnet20-l1-whole-s0",
        "group": "resnet20-group-whole-s0",
        "target half MACs": "resnet20-target-macs0.5-s0",
    },
}
COLORS = {"none": "C0", "l1": "C1", "target": "C2", "prox": "C3", "polarization": "C4", "l0": "C5", "group": "C6"}


def curve(setting: jobs.Setting, network: str, stored: str) -> dict[str, Any]:
    """Masked, absorbed, recalibrated, and both together, at every ratio of the dense network's channels."""
    saved = torch.load(setting.cache / f"{stored}.pt")
    model = jobs.started(network, 0)
    if saved["plan"] is not None:
        model = slim.rebuild(model, slim.Plan.from_json(saved["plan"]))
    model.load_state_dict(saved["weights"])
    model.eval()
    graph = slim.trace(model, jobs.EXAMPLE)
    gone = jobs.sizes(model, network)["removed"]
    test = setting.test[:: len(setting.test) // IMAGES]
    points: dict[str, list[float]] = {"ratio": [], "masked": [], "absorbed": [], "recalibrated": [], "both": []}
    for ratio in RATIOS:
        # A network that trained itself thin has lost its first channels already.
        more = max(0.0, (ratio - gone) / (1 - gone))
        plan = slim.select(graph, slim.score(graph, "gamma"), ratio=more)
        masked, absorbed = slim.rebuild(model, plan), slim.rebuild(absorb(model, plan, graph), plan)
        points["ratio"].append(ratio)
        points["masked"].append(accuracy(masked, test))
        points["absorbed"].append(accuracy(absorbed, test))
        for key, thin in (("recalibrated", masked), ("both", absorbed)):
            recalibrate(thin, setting.calibration(), BATCHES)
            points[key].append(accuracy(thin, test))
    return points


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel per network: dashed as cut, solid after recovery, a mark per run of `target` on its budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 5.8), sharey=True, constrained_layout=True)
    for axes, (network, curves) in zip(panels, NETWORKS.items(), strict=True):
        dense = [r["accuracy"] for name, r in results.items() if name.startswith(f"{network}/dense/")]
        axes.axhline(statistics.mean(dense), color="0.6", linewidth=1, label="dense, whole")
        for name in curves:
            points = results.get(f"curve/{network}/{name}")
            if points is None:
                continue
            color = COLORS[name.partition(" ")[0]]
            share = [100 * r for r in points["ratio"]]
            axes.plot(share, points["masked"], "--", color=color, linewidth=1.1)
            axes.plot(share, points["both"], "-o", color=color, markersize=3, label=name)
        for label, mark, taught in (
            ("target, each run told its budget", {"marker": "*", "markersize": 10, "color": COLORS["target"]}, False),
            ("the same with a teacher", {"marker": "D", "markersize": 5, "color": "gold"}, True),
        ):
            runs = {name: r for name, r in results.items() if name.startswith(f"{network}/target")}
            told = [r for name, r in runs.items() if ("taught" in name) == taught]
            axes.plot(
                [100 * r["removed"] for r in told], [r["recalibrated"] for r in told], **mark,
                markeredgecolor="black", markeredgewidth=0.5, linestyle="none", label=label,
            )  # fmt: skip
        axes.set(
            xlabel="channels removed, %",
            title=f"{network}: as cut (dashed), recovered (solid)",
            ylim=(0, 90),
            xlim=(0, 80),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    panels[0].set(ylabel="test accuracy, %, no fine-tuning")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(setting: jobs.Setting) -> None:
    """Curves that are missing and whose network has been trained, then the figure."""
    for network, curves in NETWORKS.items():
        for name, stored in curves.items():
            if (setting.cache / f"{stored}.pt").exists():
                jobs.RESULTS.run(f"curve/{network}/{name}", partial(curve, setting, network, stored))
    draw(jobs.RESULTS.read(), Path(__file__).parent / "cliff.png")
