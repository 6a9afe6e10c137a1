"""Which digits are where? A one-stage detector on a grid (as YOLO: Redmon et al. 2016), loss and metric its own."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.own.regression import block
from examples.own.scenes import Scenes as Scenes


class GridDetector(pl.LightningModule):
    """Every cell of a grid says whether a digit's centre lies in it, where within it, and which digit it is.

    Logs ``val/f1`` and ``test/f1``: a digit is found when its cell says so, names it, and is off by less than 3 pixels.
    """

    def __init__(self, width: int = 32, lr: float = 5e-3, size: int = 40) -> None:
        super().__init__()
        self.lr, self.size, self.cells = lr, size, size // 8
        self.backbone = nn.Sequential(block(1, width), block(width, 2 * width), block(2 * width, 2 * width))
        self.neck = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.detect = nn.Conv2d(2 * width, 1 + 2 + 10, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images to logits of presence (N, S, S), offsets (N, S, S, 2) in [0, 1], logits of classes (N, S, S, 10)."""
        raw = self.detect(self.neck(self.backbone(images))).permute(0, 2, 3, 1)
        return raw[..., 0], raw[..., 1:3].sigmoid(), raw[..., 3:]

    def _targets(self, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column (N, D) of every digit's cell, and the place (N, D, 2) within it."""
        scaled = centres * self.cells
        cell = scaled.floor().clamp(0, self.cells - 1).long()
        return cell[..., 1], cell[..., 0], scaled - cell

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Presence everywhere; place and class where a digit is."""
        images, centres, classes = batch
        presence, offsets, logits = self(images)
        row, column, place = self._targets(centres)
        scene = torch.arange(len(images), device=images.device)[:, None].expand_as(row)
        wanted = torch.zeros_like(presence)
        wanted[scene, row, column] = 1
        loss = 5 * F.binary_cross_entropy_with_logits(presence, wanted)
        loss = loss + F.l1_loss(offsets[scene, row, column], place)
        loss = loss + F.cross_entropy(logits[scene, row, column].flatten(0, 1), classes.flatten())
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def _score(self, name: str, batch: Any) -> None:
        images, centres, classes = batch
        presence, offsets, logits = self(images)
        row, column, place = self._targets(centres)
        scene = torch.arange(len(images), device=images.device)[:, None].expand_as(row)
        said = presence > 0
        off = (offsets[scene, row, column] - place).norm(dim=-1) * self.size / self.cells
        right = said[scene, row, column] & (logits[scene, row, column].argmax(-1) == classes) & (off < 3)
        f1 = 2 * right.sum() / (said.sum() + classes.numel())
        self.log(name, f1, batch_size=len(images))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """F1 of the digits found."""
        self._score("val/f1", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Likewise."""
        self._score("test/f1", batch)

    def configure_optimizers(self) -> Any:
        """AdamW, in one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]
