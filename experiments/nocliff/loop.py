"""Training and evaluation in plain PyTorch: what a user without Lightning would write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.nocliff.data import Batches, Images, normalize
from slim.channels import ChannelGraph
from slim.recovery import Distillation
from slim.sparsity import Penalty

BATCH = 64
PEAK_LR = 0.1
WEIGHT_DECAY = 1e-4


def train(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    seed: int,
    penalty: Penalty | None = None,
    graph: ChannelGraph | None = None,
    sparse_epochs: int | None = None,
    after_epoch: Callable[[int, torch.optim.Optimizer], None] | None = None,
    precision: str = "bf16",
    kept: Mapping[str, Any] | None = None,
    until: int | None = None,
    distillation: Distillation | None = None,
) -> dict[str, Any]:
    """One-cycle SGD with Nesterov momentum; the penalty, if any, is stepped around the optimizer.

    Args:
        model: changed in place.
        images: training images.
        epochs: length of the one learning-rate cycle, sparse and fine-tune epochs together.
        seed: of the order of the batches and their augmentation.
        penalty: acts in the first ``sparse_epochs`` epochs (all of them by default).
        graph: of ``model``, for the penalty.
        after_epoch: called with the epochs done and the optimizer: the place for surgery.
        precision: ``bf16`` (autocast) or ``fp32``.
        kept: what an earlier call returned for the same model and seed: go on from there.
        until: stop after so many epochs of the cycle.
        distillation: a network in eval mode to learn from besides the labels.

    Returns:
        Epochs done and the states of optimizer, schedule and data order.
    """
    batches = Batches(images, BATCH, seed)
    sparse_epochs = epochs if sparse_epochs is None else sparse_epochs
    optimizer = torch.optim.SGD(
        model.parameters(), lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, epochs * len(batches), cycle_momentum=False)
    if penalty is not None:
        assert graph is not None, "a penalty needs the graph of the model"
        penalty.attach(model, graph, sparse_epochs * len(batches))
        if kept is not None:
            penalty.load_state_dict(penalty.state_dict() | {"step": kept["epoch"] * len(batches)})
    begin = 0
    if kept is not None:
        begin = kept["epoch"]
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        batches.generator.set_state(kept["generator"])
    model.train()
    for epoch in range(begin, until or epochs):
        if epoch == sparse_epochs:
            penalty = None
        for x, y in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = model(x)
                taught = _said(distillation.teacher, x) if distillation is not None else None
            if distillation is None or taught is None:
                loss = F.cross_entropy(logits.float(), y)
            else:
                loss = distillation.losses(logits.float(), taught.float(), y)[0]
            optimizer.zero_grad()
            loss.backward()
            lr = optimizer.param_groups[0]["lr"]
            if penalty is not None:
                penalty.before_step(lr)
            optimizer.step()
            if penalty is not None:
                penalty.after_step(lr)
            schedule.step()
        if after_epoch is not None:
            del loss, logits  # they hold on to the parameters' old shapes
            after_epoch(epoch + 1, optimizer)
    return {
        "epoch": until or epochs,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "generator": batches.generator.get_state(),
    }


@torch.no_grad()
def _said(teacher: nn.Module, x: Tensor) -> Tensor:
    return teacher(x)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, precision: str = "bf16") -> float:
    """Percent right, in eval mode."""
    was = model.training
    model.eval()
    right = 0
    for i in range(0, len(images), 500):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(normalize(images.x[i : i + 500]))
        right += int((logits.argmax(1) == images.y[i : i + 500]).sum())
    model.train(was)
    return 100 * right / len(images)
