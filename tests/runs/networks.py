"""A network that writes down its gammas, for tests that look into every process of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn

from slim.runs import processes
from slim.tasks import Classification


class Watched(nn.Sequential):
    """Appends all gammas to ``$GAMMAS/<rank>`` as bytes, a line of hexadecimal for every training step.

    Where ``$NAN_RANK`` and ``$NAN_STEP`` name a process and a step, its logits become NaN there.
    """

    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        if self.training and x.device.type == "cpu" and len(x) > 1:
            rank = str(processes.rank())
            gammas = [m.weight.detach().numpy().tobytes().hex() for m in self if isinstance(m, nn.BatchNorm2d)]
            with (Path(os.environ["GAMMAS"]) / rank).open("a") as file:
                file.write(" ".join(gammas) + "\n")
            self.steps += 1
            if (rank, str(self.steps)) == (os.environ.get("NAN_RANK"), os.environ.get("NAN_STEP")):
                logits = logits * torch.nan
        return logits


class Impatient(Classification):
    """Stops after its second epoch, in which nothing can have become so much better."""

    def configure_callbacks(self) -> list[Any]:
        return [EarlyStopping("val/accuracy", mode="max", min_delta=2.0, patience=1)]


class BySelf(Classification):
    """Steps by itself, after every second batch."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
        return loss


def watched(num_classes: int, in_channels: int) -> nn.Module:
    """Two convolutions, and gammas on both."""
    return Watched(
        nn.Conv2d(in_channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


class Hungry(nn.Module):
    """Asks for a petabyte where ``$HUNGRY`` says: while it trains, or while it is evaluated."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.training == (os.environ["HUNGRY"] == "training") and len(x) > 1:
            torch.empty(10**15, dtype=torch.uint8)
        return x


def hungry(num_classes: int, in_channels: int) -> nn.Module:
    """One convolution, and too much memory for it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Hungry(),
        nn.Linear(8, num_classes),
    )  # fmt: skip
