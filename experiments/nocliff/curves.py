"""Accuracy against the share of channels removed, at the cut: one curve per law, before and after recovery."""

from __future__ import annotations

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
# Stored networks, and the name of their curve.
NETWORKS = {
    "none (dense)": "vgg-dense-s0",
    "l1, epoch 8": "vgg-l1-sparse-s0",
    "target 60%": "vgg-target-ratio0.6-s0",
}


def curve(setting: jobs.Setting, stored: str) -> dict[str, Any]:
    """Masked, absorbed, recalibrated, and both together, at every ratio of the dense network's channels."""
    saved = torch.load(setting.cache / f"{stored}.pt")
    model = jobs.started("vgg", 0)
    if saved["plan"] is not None:
        model = slim.rebuild(model, slim.Plan.from_json(saved["plan"]))
    model.load_state_dict(saved["weights"])
    model.eval()
    graph = slim.trace(model, jobs.EXAMPLE)
    gone = jobs.sizes(model, "vgg")["removed"]
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


def available(cache: Path) -> dict[str, str]:
    """Curves whose network has been trained."""
    return {name: stored for name, stored in NETWORKS.items() if (cache / f"{stored}.pt").exists()}


def draw(results: dict[str, Any], path: Path) -> None:
    """The figure: dashed as cut, solid after recovery."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.6, 5.4), constrained_layout=True)
    dense = [r["accuracy"] for name, r in results.items() if name.startswith("vgg/dense/")]
    axes.axhline(sum(dense) / len(dense), color="0.6", linewidth=1, label="dense, whole")
    curves = {name.partition("/")[2]: r for name, r in results.items() if name.startswith("curve/")}
    for color, name in zip(plt.get_cmap("tab10").colors, [n for n in NETWORKS if n in curves], strict=False):
        points = curves[name]
        share = [100 * r for r in points["ratio"]]
        axes.plot(share, points["masked"], "--", color=color, linewidth=1.3, label=f"{name}: as cut")
        axes.plot(
            share, points["both"], "-o", color=color, markersize=3, label=f"{name}: recovered (absorbed, recalibrated)"
        )
    axes.set(xlabel="channels removed, %", ylabel="test accuracy, %, no fine-tuning", ylim=(0, 90), xlim=(0, 80))
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def run(setting: jobs.Setting, store: Any) -> None:
    """Curves that are missing, then the figure."""
    for name, stored in available(setting.cache).items():
        store.run(f"curve/{name}", lambda stored=stored: curve(setting, stored))
    draw(store.read(), Path(__file__).parent / "cliff.png")
