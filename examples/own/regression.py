"""Where is the digit? A network that gives two numbers, with a loss, an optimizer and a metric of its own."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.own.scenes import Scenes as Scenes


def block(inside: int, outside: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; half the size."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Regression(pl.LightningModule):
    """Centre of the one digit in an image, x and y in [0, 1]; logs ``val/mae`` and ``test/mae``, in pixels."""

    def __init__(self, width: int = 32, lr: float = 3e-3, size: int = 40) -> None:
        super().__init__()
        self.lr, self.size = lr, size
        self.net = nn.Sequential(
            block(1, width), block(width, 2 * width), block(2 * width, 2 * width), nn.Flatten(),
            nn.Linear(2 * width * (size // 8) ** 2, 2),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, size, size) to centres (N, 2)."""
        centres: Tensor = self.net(images).sigmoid()
        return centres

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Huber's loss."""
        images, centres, _ = batch
        loss = F.smooth_l1_loss(self(images), centres[:, 0], beta=0.05)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def _error(self, name: str, batch: Any) -> None:
        images, centres, _ = batch
        error = (self(images) - centres[:, 0]).abs().mean() * self.size
        self.log(name, error, batch_size=len(images))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Mean absolute error, pixels."""
        self._error("val/mae", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Likewise."""
        self._error("test/mae", batch)

    def configure_optimizers(self) -> Any:
        """Adam, its rate falling to zero."""
        optimizer = torch.optim.Adam(self.net.parameters(), self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)]
