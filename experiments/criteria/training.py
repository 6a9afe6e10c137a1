"""Training and accuracy, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slim
from experiments.criteria.images import Images, augmented
from slim.sparsity import build as penalty_of

INPUTS = torch.zeros(1, 3, 32, 32)
BATCH = 64
WEIGHT_DECAY = 5e-4
LAM = 5e-4


@dataclass
class Setting:
    """What every job shares."""

    train: Images
    held_out: Images
    test: Images
    sparse_epochs: int
    finetune_epochs: int
    macs: float
    max_layer_ratio: float
    bf16: bool
    cache: Path

    @property
    def total(self) -> int:
        """Epochs that every contender gets, sparse and fine-tuning together."""
        return self.sparse_epochs + self.finetune_epochs

    @property
    def limits(self) -> dict[str, float]:
        """The budget of every cut, and its floor."""
        return {"macs": self.macs, "max_layer_ratio": self.max_layer_ratio}

    def calibration(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches for recovery: one epoch of training images, cropped and flipped as in training."""
        return augmented(self.train, BATCH, torch.Generator().manual_seed(0))

    def autocast(self) -> torch.autocast:
        """Mixed precision, or none."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)


def train(
    setting: Setting,
    model: nn.Module,
    epochs: int,
    seed: int,
    *,
    peak: float = 0.1,
    sparse: bool = False,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """SGD with Nesterov momentum under one learning-rate cycle; ``sparse``: with L1 on gamma (Liu et al. 2017)."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(setting.train) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=0.2, cycle_momentum=False)
    penalty = penalty_of("l1", lam=LAM) if sparse else None
    if penalty is not None:
        penalty.attach(model, slim.trace(model, INPUTS), steps)
    model.train()
    for epoch in range(epochs):
        for x, y in augmented(setting.train, BATCH, generator):
            with setting.autocast():
                logits = model(x)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), y).backward()
            rate = optimizer.param_groups[0]["lr"]
            if penalty is not None:
                penalty.before_step(rate)
            optimizer.step()
            if penalty is not None:
                penalty.after_step(rate)
            rates.step()
        if after_epoch is not None:
            after_epoch(epoch + 1)


@torch.no_grad()
def accuracy(setting: Setting, model: nn.Module, images: Images) -> float:
    """Percent right, in eval mode."""
    was = model.training
    model.eval()
    with setting.autocast():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(500))
    model.train(was)
    return 100 * right / len(images)
