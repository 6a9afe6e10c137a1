"""The loop that all methods share: one learning-rate cycle, from its beginning or from a kept moment of the dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from experiments.nocliff.data import Batches, Images, normalize
from experiments.nocliff.network import vgg
from slim.channels import ChannelGraph
from slim.recovery import Distillation
from slim.sparsity import Penalty

WIDTHS: tuple[int | str, ...] = (16, "M", 32, "M", 64, 64, "M", 128, 128)
EXAMPLE = torch.zeros(1, 3, 32, 32)
BATCH = 64
PEAK_LR = 0.1
WEIGHT_DECAY = 1e-4
EPOCHS = 9
CUT = 6  # epochs done when the dense network is cut, factored or rounded; the others are the fine-tune
BRANCH = 2  # epochs done when `target` leaves the dense training: until then it only looks on


@dataclass(frozen=True)
class Setting:
    """Where images come from and trained networks go."""

    train: Images
    test: Images
    cache: Path
    epochs: int = EPOCHS
    cut: int = CUT
    branch: int = BRANCH


def train(
    setting: Setting,
    model: nn.Module,
    seed: int,
    *,
    kept: dict[str, Any] | None = None,
    keep_at: tuple[int, ...] = (),
    between: Callable[[int, torch.optim.Optimizer], None] | None = None,
    penalty: Penalty | None = None,
    graph: ChannelGraph | None = None,
    sparse_epochs: int | None = None,
    teacher: nn.Module | None = None,
) -> dict[int, dict[str, Any]]:
    """SGD with Nesterov momentum under one learning-rate cycle over ``setting.epochs``; changes ``model``.

    Args:
        setting: images and epochs.
        model: in the state of the kept moment, if there is one.
        seed: of the order of the batches and their augmentation.
        kept: a moment of an earlier training of the same seed, to go on from.
        keep_at: epochs done at which to keep a moment.
        between: called with the epochs done and the optimizer, before every epoch and after the last: the place for
            surgery. What it makes new must be given to the optimizer by itself.
        penalty: acts in the first ``sparse_epochs`` epochs (all of them by default).
        graph: of ``model``, for the penalty.
        teacher: a network in eval mode to learn from besides the labels (temperature 4, half of the loss).

    Returns:
        The moments: weights, states of optimizer, schedule and data order, by the epochs done.
    """
    batches = Batches(setting.train, BATCH, seed)
    steps = setting.epochs * len(batches)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps, cycle_momentum=False)
    begin = 0
    if kept is not None:
        begin = kept["epoch"]
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        batches.generator.set_state(kept["generator"])
    sparse_epochs = setting.epochs if sparse_epochs is None else sparse_epochs
    if penalty is not None:
        assert graph is not None, "a penalty needs the graph of the model"
        penalty.attach(model, graph, sparse_epochs * len(batches))
        penalty.load_state_dict(penalty.state_dict() | {"step": begin * len(batches)})
    listening = Distillation(teacher) if teacher is not None else None
    moments: dict[int, dict[str, Any]] = {}
    model.train()
    for epoch in range(begin, setting.epochs + 1):
        if epoch in keep_at:
            moments[epoch] = _moment(epoch, model, optimizer, schedule, batches)
        if between is not None:
            between(epoch, optimizer)
        if epoch < setting.epochs:
            _epoch(model, batches, optimizer, schedule, penalty if epoch < sparse_epochs else None, listening)
    return moments


def _epoch(
    model: nn.Module, batches: Batches, optimizer: Any, schedule: Any, penalty: Any, listening: Distillation | None
) -> None:
    """In a function of its own, so that no loss holds on to shapes of parameters that surgery changes."""
    for x, y in batches:
        logits = model(x)
        if listening is None:
            loss = F.cross_entropy(logits, y)
        else:
            with torch.no_grad():
                said = listening.teacher(x)
            loss = listening.losses(logits, said, y)[0]
        optimizer.zero_grad()
        loss.backward()
        rate = optimizer.param_groups[0]["lr"]
        if penalty is not None:
            penalty.before_step(rate)
        optimizer.step()
        if penalty is not None:
            penalty.after_step(rate)
        schedule.step()


def _moment(epoch: int, model: nn.Module, optimizer: Any, schedule: Any, batches: Batches) -> dict[str, Any]:
    moment = {
        "epoch": epoch,
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "generator": batches.generator.get_state(),
    }
    # Deep: the states are the live tensors.
    copied = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, moment)
    return dict(copied)


def started(seed: int, widths: tuple[int | str, ...] = WIDTHS) -> nn.Sequential:
    """A fresh network; the weights follow from the seed."""
    torch.manual_seed(seed)
    return vgg(widths)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Percent right, in eval mode."""
    was = model.training
    model.eval()
    batches = range(0, len(images), 500)
    right = sum(
        int((model(normalize(images.x[i : i + 500])).argmax(1) == images.y[i : i + 500]).sum()) for i in batches
    )
    model.train(was)
    return 100 * right / len(images)
