"""Seconds of surgery against depth: CIFAR ResNets of 20 to 434 layers, with the line that fits them best."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.surgery.contenders import with_slim
from slim.models import build

DEPTHS = (20, 56, 110, 218, 434)


def growth(repeats: int) -> dict[str, Any]:
    """Median seconds per depth, the linear fit and its R^2, and the exponent between depth 110 and 434."""
    seconds = []
    for depth in DEPTHS:
        model = build("resnet", num_classes=10, depth=depth)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
        runs = [with_slim(model, torch.zeros(1, 3, 32, 32), "gamma")[1]["total"] for _ in range(repeats + 1)]
        seconds.append(statistics.median(runs[1:]))
    depths, times = np.array(DEPTHS, float), np.array(seconds)
    slope, intercept = np.polyfit(depths, times, 1)
    residual = times - (slope * depths + intercept)
    return {
        "seconds": dict(zip(map(str, DEPTHS), seconds, strict=True)),
        "milliseconds per layer": 1e3 * slope,
        "intercept": intercept,
        "r2": 1 - float((residual**2).sum() / ((times - times.mean()) ** 2).sum()),
        "exponent": float(np.log(times[-1] / times[-3]) / np.log(depths[-1] / depths[-3])),
    }
