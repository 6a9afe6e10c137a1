"""Curves of a training phase: what the module logged, in TensorBoard and as one list per metric for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from slim.errors import RunFailed
from slim.report import tags


class RunLogger(TensorBoardLogger):
    """TensorBoard: tags in reading order, one axis of steps for all phases, each tag once per step.

    Lightning writes an epoch's training metrics after the checkpoint of that epoch. A run that is killed in between
    would lose the point, so :class:`Curves` writes them before; when Lightning writes them again they are dropped.

    Args:
        directory: Of the run.
        phase: Its events go to ``directory/phase``.
        metric: What networks of the run are compared by.
        steps_before: Optimizer steps of the phases that this one goes on from.
        purge_step: Points of the phase from this step on belong to a past that did not happen.
    """

    def __init__(self, directory: Path, phase: str, metric: str, *, steps_before: int = 0, purge_step: int = 0) -> None:
        purged = purge_step + steps_before
        super().__init__(directory, name="", version=phase, default_hp_metric=False, purge_step=purged)
        self._metric, self._before = metric, steps_before
        self._written: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write what has no point at ``step`` (of the phase) yet."""
        metrics = tags.named(metrics, self._metric)
        if step is not None:
            step += self._before
            metrics = {tag: value for tag, value in metrics.items() if self._written.get(tag) != step}
            self._written |= dict.fromkeys(metrics, step)
        if metrics:
            super().log_metrics(metrics, step)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        """Nothing: a run is one row of HParams, not one for each phase; see :mod:`slim.report.tensorboard`."""

    def add_histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write the distribution of ``values`` at ``step`` of the phase."""
        self.experiment.add_histogram(tag, values, step + self._before)


class Curves(Checkpoint):
    """Keeps every metric of every epoch.

    A ``Checkpoint`` because Lightning calls those after the module's own ``on_train_epoch_end``, in which modules log,
    and it must stand before the one that writes the file.

    Args:
        lines: Constants to draw beside them, such as a budget.

    Attributes:
        history: Metric (``train_loss`` for ``train/loss``) -> one number per epoch, the last known; None before.
    """

    def __init__(self, lines: Mapping[str, float] | None = None) -> None:
        self.history: dict[str, list[float | None]] = {}
        self._lines = dict(lines or {})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the epoch's metrics and write them to the logger.

        Raises:
            RunFailed: A loss is no finite number.
        """
        found = epoch_metrics(trainer)
        for tag, value in found.items():
            if "loss" in tag and not math.isfinite(value):
                raise RunFailed(f"The loss must be finite. Got {tag}={value} (epoch {trainer.current_epoch + 1}).")
        named = {tag.replace("/", "_"): value for tag, value in found.items()}
        for name in {**self.history, **named}:
            values = self.history.setdefault(name, [])
            values += [*[None] * (trainer.current_epoch - len(values)), named.get(name)]
        if trainer.logger is not None:
            points = {**found, **self._lines, "epoch": trainer.current_epoch}
            trainer.logger.log_metrics(points, step=epoch_step(trainer))

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"history": {name: list(values) for name, values in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self.history = {name: list(values) for name, values in state_dict["history"].items()}


def tags_of(metric: str, split: str = "val") -> tuple[str, ...]:
    """What a module may log ``metric`` of ``split`` as; what comes first counts.

    A module without a test step is validated on the test data, and logs as it does then.

    >>> tags_of("mae")[:4]
    ('val/mae', 'val_mae', 'mae', 'valid/mae')
    """
    prefixes = dict.fromkeys((split, "val", "valid", "validation"))
    named = [tag for prefix in prefixes for tag in (f"{prefix}/{metric}", f"{prefix}_{metric}", metric)]
    return tuple(dict.fromkeys(named))


def epoch_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """What the module logged for the epoch that ends: tag -> value. Waits for the device."""
    found = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    # Where a metric is logged per step and per epoch, Lightning keeps it as <tag>_step and <tag>_epoch.
    return {tag: value for tag, value in found.items() if not tag.endswith("_step")}


def epoch_step(trainer: pl.Trainer) -> int:
    """The step at which Lightning writes metrics of an epoch, that of its last batch, counted from 0."""
    loop: Any = trainer.fit_loop.epoch_loop
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step)) - 1
