"""How cost grows: training time with depth and width, the prune phase with the number of channel groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import slim
from experiments.bench.row import Row
from experiments.bench.steps import Step, images, network
from experiments.bench.thin import _spread
from experiments.bench.turns import take_turns


def run(quick: bool) -> list[Row]:
    """Exponents of the fits ``seconds = a * size ** exponent``; 1 is linear."""
    depths = (8, 20, 32) if quick else (20, 32, 56, 110)
    widths = (8, 16, 32) if quick else (32, 64, 128, 192)
    x, y = images(8 if quick else 64)
    turns = 2 if quick else 7

    by_depth = {depth: Step(network("resnet", depth=depth)) for depth in depths}
    rows = [_fit("training step of a resnet against its depth", _times(by_depth, x, y, turns), len(x))]

    plans = {width: [width, width, "M", width, width, "M", width, width] for width in widths}
    by_width = {width: Step(network("vgg", widths=plan)) for width, plan in plans.items()}
    macs = {width: slim.trace(step.model, x[:1]).macs() for width, step in by_width.items()}
    seconds = _times(by_width, x, y, turns)
    rows.append(
        _fit(f"training step of a vgg against MACs, widths {widths[0]} to {widths[-1]}",
             {macs[width]: spent for width, spent in seconds.items()}, len(x))
    )  # fmt: skip

    nets = {depth: network("resnet", depth=depth) for depth in ((20, 56) if quick else (20, 56, 110, 218, 434))}
    groups = {}
    for depth, net in nets.items():
        _spread(net)
        groups[depth] = len(slim.trace(net, torch.zeros(1, 3, 32, 32)))
    cuts = take_turns(
        {
            str(depth): lambda net=net: slim.prune(net, torch.zeros(1, 3, 32, 32), ratio=0.5)
            for depth, net in nets.items()
        },
        turns,
    )
    rows.append(
        _fit("trace to rebuild against channel groups, resnets 20 to 434",
             {groups[depth]: cuts.median(str(depth)) for depth in nets}, None)
    )  # fmt: skip
    return rows


def _times(steps: Mapping[int, Step], x: torch.Tensor, y: torch.Tensor, turns: int) -> dict[int, float]:
    found = take_turns({str(key): lambda step=step: step(x, y) for key, step in steps.items()}, turns)
    return {key: found.median(str(key)) for key in steps}


def _fit(what: str, seconds: Mapping[int, float], images_per_step: int | None) -> Row:
    sizes, times = np.array(list(seconds), float), np.array(list(seconds.values()))
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    slope, start = np.polyfit(sizes, times, 1)
    residual = times - (slope * sizes + start)
    detail = {
        "seconds": {str(key): value for key, value in seconds.items()},
        "r2_of_a_line": 1 - float((residual**2).sum() / ((times - times.mean()) ** 2).sum()),
    }
    if images_per_step is not None:
        detail["images_per_second"] = {str(key): images_per_step / value for key, value in seconds.items()}
    return Row(
        "growth",
        _said(what, detail),
        exponent,
        "",
        ("<=", 1.1),
        detail,
    )


def _said(what: str, detail: Mapping[str, Any]) -> str:
    """The row's text: what grows, at which sizes it was measured, and how straight the line is."""
    if "images_per_second" in detail:
        points = ", ".join(f"{size}: {rate:.0f}" for size, rate in detail["images_per_second"].items())
        points = f"images/s {points}"
    else:
        points = "seconds " + ", ".join(f"{size}: {value:.2f}" for size, value in detail["seconds"].items())
    return f"{what}: exponent ({points}; line fits with R2 = {detail['r2_of_a_line']:.3f})"
