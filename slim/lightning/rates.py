"""Learning rates of all steps of a fit, computed before it begins."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from slim.errors import SlimError
from slim.lightning.traced import callbacks_of
from slim.sparsity.step import owns


def steps_of(trainer: pl.Trainer, epochs: int | None = None, since: tuple[int, int] = (0, 0)) -> int:
    """Optimizer steps until so many epochs are done, or the whole fit, by accumulation and limits.

    Args:
        trainer: In a fit, its loaders made.
        epochs: By default all.
        since: Epochs and steps that were done before.

    Raises:
        SlimError: The fit has no known length.
    """
    batches = trainer.num_training_batches
    total = trainer.max_steps - since[1] if trainer.max_steps and trainer.max_steps > 0 else math.inf
    if epochs is None:
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
    if epochs is not None:
        total = min(total, steps_of_epochs(trainer, since[0], epochs))
    if math.isinf(total):
        raise SlimError(
            f"A law needs to know how many steps there will be. Got max_epochs={trainer.max_epochs}, "
            f"max_steps={trainer.max_steps} and {batches} batches. Set max_steps, max_epochs with a sized loader, or "
            "steps."
        )
    return max(1, int(total))  # none are left where a cut is overdue, which ends the law at once


def steps_of_epochs(trainer: pl.Trainer, first: int, last: int) -> float:
    """Optimizer steps in the epochs from ``first`` up to ``last``, which is none of them, whatever limits there are."""
    batches = trainer.num_training_batches
    if math.isinf(batches):
        return math.inf
    return sum(math.ceil(batches / accumulated(trainer, epoch)) for epoch in range(first, last))


def accumulated(trainer: pl.Trainer, epoch: int) -> int:
    """Batches whose gradients make one step in an epoch."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def warn_of_missed_steps(missed: tuple[int, int] | None) -> None:
    """Say at a cut where a law made fewer steps than it planned with, as ``SparseTraining.missed_steps`` tells."""
    if missed:
        planned, made = missed
        advice = f"set steps={made} (SparseTraining, sparse.steps)" if made else "call the optimizer's step()"
        rank_zero_warn(
            f"The law planned with {planned} optimizer steps and the cut comes after {made}: what goes is not at zero "
            f"yet. Under manual optimization {advice}."
        )


def owner_of(trainer: pl.Trainer, gammas: list[Any]) -> Optimizer:
    """The optimizer that steps the scales of a network.

    Raises:
        SlimError: There is none, or several step some of them.
    """
    owners = [optimizer for optimizer in trainer.optimizers if owns(optimizer, gammas)]
    if len(owners) != 1:
        raise SlimError(
            f"One optimizer must step the scales of the network. Got {len(owners)} of {len(trainer.optimizers)} that "
            f"step some of {len(gammas)} scales. Give one optimizer all of the network's parameters."
        )
    return owners[0]


def replay_learning_rates(
    trainer: pl.Trainer, optimizer: Optimizer, steps: int | None = None, *, group: int = 0
) -> list[float]:
    """The learning rate at every optimizer step from now on, by replaying the module's schedulers on a dummy optimizer.

    Under manual optimization, and for a scheduler that follows a metric, the rate of now counts for all steps.

    Args:
        trainer: In a fit, its optimizers made.
        optimizer: One of its optimizers.
        steps: How many; by default all of the fit.
        group: Index of the parameter group.

    Raises:
        SlimError: A scheduler cannot be copied.
    """
    total = steps_of(trainer) if steps is None else steps
    automatic = trainer.lightning_module.automatic_optimization
    configs = [
        config
        for config in trainer.lr_scheduler_configs
        if config.scheduler.optimizer is optimizer and not isinstance(config.scheduler, ReduceLROnPlateau)
    ]
    if not automatic or not configs:
        return [float(optimizer.param_groups[group]["lr"])] * total
    try:
        dummy, replayed = _copies(trainer, optimizer, [config.scheduler for config in configs])
    except Exception as error:  # whatever the copy of a user's object raises
        kinds = ", ".join(type(config.scheduler).__name__ for config in configs)
        raise SlimError(
            f"Learning rates are known beforehand from a copy of the scheduler. Got {kinds}, which cannot be copied "
            f"({type(error).__name__}: {error}). Leave locks, files and the like out of it."
        ) from error
    rates: list[float] = []
    epoch, batches = trainer.current_epoch, trainer.num_training_batches
    batch: float = 0
    with warnings.catch_warnings():
        # The dummy takes no steps of its own, which schedulers remark upon.
        warnings.simplefilter("ignore")
        for _ in range(total):
            rates.append(float(dummy.param_groups[group]["lr"]))
            batch = min(batch + accumulated(trainer, epoch), batches)
            last = batch >= batches
            for config, scheduler in zip(configs, replayed, strict=True):
                due = batch if config.interval == "step" else epoch + 1
                if (config.interval == "step" or last) and due % config.frequency == 0:
                    scheduler.step()
            if last:
                epoch, batch = epoch + 1, 0
    return rates


def _copies(trainer: pl.Trainer, optimizer: Optimizer, schedulers: list[Any]) -> tuple[Optimizer, list[Any]]:
    """The optimizer and its schedulers around parameters of one element; what they refer to beyond is shared."""
    module = trainer.lightning_module
    memo: dict[int, Any] = {id(trainer): trainer, id(module): module, id(trainer.strategy): trainer.strategy}
    for each in optimizer.param_groups:
        for parameter in each["params"]:
            memo[id(parameter)] = torch.zeros(1, requires_grad=True)
    for state in optimizer.state.values():
        memo.update({id(value): torch.zeros(1) for value in state.values() if isinstance(value, Tensor)})
    dummy: Optimizer = copy.deepcopy(optimizer, memo)
    memo[id(optimizer)] = dummy
    return dummy, [copy.deepcopy(scheduler, memo) for scheduler in schedulers]
