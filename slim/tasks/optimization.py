"""Optimizers and schedulers from factories, as a task's ``configure_optimizers`` returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""From parameters to an optimizer, such as ``functools.partial(torch.optim.SGD, lr=0.1)``."""

SchedulerFactory = Callable[[Optimizer, int], Any]
"""From an optimizer and the number of optimizer steps of the fit to a torch scheduler or Lightning's dict of one."""


def configured(module: pl.LightningModule, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None) -> Any:
    """What ``configure_optimizers`` of ``module`` returns: one optimizer over all trainable parameters.

    A scheduler steps once per optimizer step, unless its factory returns a dict with another ``interval``.
    """
    made = optimizer([parameter for parameter in module.parameters() if parameter.requires_grad])
    if scheduler is None:
        return made
    schedule = scheduler(made, int(module.trainer.estimated_stepping_batches))
    if not isinstance(schedule, dict):
        schedule = {"scheduler": schedule}
    return {"optimizer": made, "lr_scheduler": {"interval": "step", **schedule}}
