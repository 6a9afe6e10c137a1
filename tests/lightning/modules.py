"""Tiny modules that know nothing of slim, and Trainers that say nothing."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from slim.lightning.example import quiet


def convnet(width: int = 8, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


def images(count: int = 24, batch: int = 8, *, shuffle: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 6, 6, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch, shuffle=shuffle)


class Plain(pl.LightningModule):
    """A classifier as anybody would write it."""

    def __init__(self, width: int = 8, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = convnet(width)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def trainer(*callbacks: Any, epochs: int = 2, **options: Any) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    with quiet():
        return pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**defaults, **options})


def fit(
    module: pl.LightningModule, *callbacks: Any, data: Any = None, val: Any = None, ckpt: Any = None, **options: Any
) -> pl.Trainer:
    run = trainer(*callbacks, **options)
    with quiet():
        run.fit(module, images() if data is None else data, val, ckpt_path=ckpt)
    return run


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
