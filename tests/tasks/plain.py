"""Tiny networks and a quiet Trainer for the tests of tasks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(4, classes)),
    )


def loader(count: int = 22, batch_size: int = 8, seed: int = 0) -> DataLoader[Any]:
    """Labelled noise; the last batch is smaller than the others."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
        "use_distributed_sampler": True,
        "default_root_dir": folder,
    }
    return pl.Trainer(**(settings | options))


def fit(module: pl.LightningModule, folder: Path, *args: Any, **options: Any) -> dict[str, float]:
    """Train on labelled noise; the figures that were logged last."""
    ckpt_path = options.pop("ckpt_path", None)
    ours = trainer(folder, **options)
    ours.fit(module, *(args or (loader(), loader(seed=1))), ckpt_path=ckpt_path)
    return {name: float(value) for name, value in ours.callback_metrics.items()}
