"""Names of curves in TensorBoard, which sorts them: what a reader asks first gets the first name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

STAGES = ("train", "val", "valid", "validation", "test")
"""What stands in front of a metric's name, with a slash or an underscore."""

PLACES = {
    "lr": "5_schedule/lr",
    "epoch": "5_schedule/epoch",
    "macs": "4_cost/macs",
    "sparsity/lam": "5_schedule/lam",
    "sparsity/penalty": "2_loss/penalty",
    "distillation/loss": "2_loss/teacher",
}


def in_reading_order(name: str, metric: str) -> str:
    """The tag under which TensorBoard shows what was logged as ``name``.

    Metric, loss, sparsity, cost and schedule stand in this order, before anything else; the first two groups are the
    ones that TensorBoard unfolds.

    Args:
        name: As it was logged.
        metric: What networks of the run are compared by.

    >>> [in_reading_order(name, "miou") for name in ("val/miou", "val_miou", "train/loss", "val/accuracy", "lr")]
    ['1_miou/val', '1_miou/val', '2_loss/train', 'val/accuracy', '5_schedule/lr']
    """
    if name in PLACES:
        return PLACES[name]
    stage, what = _split(name)
    if what == metric:
        return f"1_{metric}/{stage or metric}"
    if "loss" in what.split("_"):
        rest = what.replace("loss", "", 1).strip("_").replace("/", "_")
        return f"2_loss/{'_'.join(part for part in (stage, rest) if part) or 'loss'}"
    if name.startswith("sparsity/"):
        return f"3_{name}"
    return name


def layout(metric: str) -> dict[str, dict[str, list[Any]]]:
    """The page of TensorBoard's custom scalars: all phases of a run in every chart, on one axis of steps.

    Returns:
        Category -> chart -> its kind and the tags in it, as ``SummaryWriter.add_custom_scalars`` takes them.
    """
    name = re.escape(metric)  # f1(macro), acc@5, r^2
    charts = {
        f"{metric} of all phases": rf"^1_{name}/(train|val|valid|validation|{name})$",
        "loss and its parts": r"^2_loss/",
        "share of channels at zero, share that will go, MACs left then, and the budget": (
            r"^3_sparsity/(zero|target|macs_after_cut|budget_.*)$"
        ),
        "MACs of the network that trains": r"^4_cost/macs$",
        "learning rate": r"^5_schedule/lr$",
        "lam, the strength of the penalty": r"^5_schedule/lam$",
    }
    return {"cockpit": {title: ["Multiline", [tags]] for title, tags in charts.items()}}


def named(metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Everything in ``metrics`` under its tag; see :func:`in_reading_order`."""
    return {in_reading_order(name, metric): value for name, value in metrics.items()}


def _split(name: str) -> tuple[str, str]:
    """Stage and rest of a name; no stage where it begins with none."""
    for mark in ("/", "_"):
        stage, found, rest = name.partition(mark)
        if found and stage in STAGES:
            return stage, rest
    return "", name
