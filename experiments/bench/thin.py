"""Is a network with half the MACs really faster? Measured speed-up against the ratio of the MACs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import slim
from experiments.bench.row import Row
from experiments.bench.steps import chosen, network
from slim.report import latency
from slim.shortcut import PruneResult

ROUNDED = (1, 8, 16, 32)


def run(quick: bool) -> list[Row]:
    """Speed-up over MACs ratio: at least 0.8 at batch 64, 0.6 at batch 1, with widths rounded where that helps."""
    device = chosen().device
    rows = []
    nets: dict[str, tuple[nn.Module, int]] = {"vgg-16": (network("vgg", depth=16), 32)}
    if not quick:
        nets["resnet-50"] = (network("torchvision", name="resnet50"), 224)
    for name, (dense, size) in nets.items():
        _spread(dense)
        dense.eval().to(device)
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        made = {round_to: slim.prune(dense, x, macs=0.5, round_to=round_to) for round_to in ROUNDED}
        networks = {"dense": dense, **{f"rounded to {key}": result.model for key, result in made.items()}}
        batches = (1, 8) if quick else (1, 64)
        found = latency.compare(networks, x, batches=batches, seconds=0.2 if quick else 3.0, repetitions=3)
        for batch in batches:
            told = {round_to: _told(found, result, batch, round_to) for round_to, result in made.items()}
            best = max(told, key=lambda round_to: told[round_to]["over_macs"])
            aim = (">=", 0.6 if batch == 1 else 0.8)
            rows += [
                _row(f"{name}, batch {batch}, widths as they come", told[1], None),
                _row(f"{name}, batch {batch}, best: multiples of {best}", {**told[best], "all": told}, aim),
            ]
    return rows


def _told(found: latency.Comparison, result: PruneResult, batch: int, round_to: int) -> dict[str, Any]:
    before, after = result.report.macs
    millis = {key: found.millis[key][batch] for key in ("dense", f"rounded to {round_to}")}
    speedup = millis["dense"] / millis[f"rounded to {round_to}"]
    shares = found.shares[f"rounded to {round_to}"][batch]
    return {
        "over_macs": speedup / (before / after),
        "speedup": speedup,
        "macs_kept": after / before,
        "millis": millis,
        "bound": max(shares, key=lambda kind: shares[kind]),
        "shares": shares,
    }


def _row(what: str, told: dict[str, Any], aim: tuple[str, float] | None) -> Row:
    what = f"{what}: {told['speedup']:.2f}x at {told['macs_kept']:.2f} of the MACs ({told['bound']}-bound)"
    return Row("thin", what, told["over_macs"], "", aim, told)


def _spread(model: nn.Module) -> None:
    """Gammas of a trained network vary; a fresh network's are all alike."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator))
