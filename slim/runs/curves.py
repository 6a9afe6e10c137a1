"""Curves of a training phase: what the module logged, in TensorBoard and as one list per metric for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger

from slim.errors import RunFailed


class RunLogger(TensorBoardLogger):
    """TensorBoard, each tag once per step.

    Lightning writes an epoch's training metrics after the checkpoint of that epoch. A run that is killed in between
    would lose the point, so :class:`Curves` writes them before; when Lightning writes them again they are dropped.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._written: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write what has no point at ``step`` yet."""
        if step is not None:
            metrics = {tag: value for tag, value in metrics.items() if self._written.get(tag) != step}
            self._written |= dict.fromkeys(metrics, step)
        if metrics:
            super().log_metrics(dict(metrics), step)


class Curves(Checkpoint):
    """Keeps every metric of every epoch.

    A ``Checkpoint`` because Lightning calls those after the module's own ``on_train_epoch_end``, in which modules log,
    and it must stand before the one that writes the file.

    Attributes:
        history: Metric (``train_loss`` for ``train/loss``) -> one number per epoch.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the epoch's metrics and write them to the logger.

        Raises:
            RunFailed: A loss is no finite number.
        """
        found = epoch_metrics(trainer)
        for tag, value in found.items():
            if "loss" in tag and not math.isfinite(value):
                raise RunFailed(f"The loss must be finite. Got {tag}={value} (epoch {trainer.current_epoch + 1}).")
            self.history.setdefault(tag.replace("/", "_"), []).append(value)
        if trainer.logger is not None:
            trainer.logger.log_metrics({**found, "epoch": trainer.current_epoch}, step=epoch_step(trainer))

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"history": {name: list(values) for name, values in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self.history = {name: list(values) for name, values in state_dict["history"].items()}


def epoch_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """What the module logged for the epoch that ends: tag -> value. Waits for the device."""
    found = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    # Where a metric is logged per step and per epoch, Lightning keeps it as <tag>_step and <tag>_epoch.
    return {tag: value for tag, value in found.items() if not tag.endswith("_step")}


def epoch_step(trainer: pl.Trainer) -> int:
    """The step at which Lightning writes metrics of an epoch, that of its last batch, counted from 0."""
    loop: Any = trainer.fit_loop.epoch_loop
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step)) - 1
