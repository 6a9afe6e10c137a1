"""One checkpoint per phase, always whole, that a run continues from bit by bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO

from slim.errors import SlimError
from slim.files import read_torch, write_atomic
from slim.lightning.random_state import generators, set_generators
from slim.runs.signals import Interrupted, Signals


class SafeFiles(CheckpointIO):
    """Writes checkpoints atomically and reads them with ``weights_only``: nothing in a file can run."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside, sync, rename."""
        write_atomic(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See :func:`read`."""
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file if it is there."""
        Path(path).unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        SlimError: The file is missing, damaged, holds more than tensors and plain data, or is not a run's.
    """
    body = read_torch(path, what="checkpoint")
    try:
        ours, weights = body["run"], body["state_dict"]
        if not {"position", "seconds", "generators"} <= set(ours) or not isinstance(ours["plan"], (str, type(None))):
            raise ValueError("its part of the run is another")
        if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise ValueError("its weights are no tensors")
        if not isinstance(body["global_step"], int) or not isinstance(body["callbacks"], dict):
            raise ValueError("its step or its training state is missing")
    except (KeyError, TypeError, ValueError) as error:
        raise SlimError(
            f"A checkpoint to go on from must be one of a run. Got {path} ({type(error).__name__}: {str(error)[:80]}). "
            "Give a last.ckpt of a run, or a state dict as *.pt."
        ) from None
    return dict(body)


class Saver(Checkpoint):
    """Saves the phase: after every epoch, every so often within one, and when a signal asks the run to stop.

    Lightning calls checkpoint callbacks last, so everything that others logged for the step is part of the past.

    Args:
        path: The one file, replaced each time.
        beside: Gives what is saved beside Lightning's own state, under ``run``: the network's plan, which a resumed
            run applies before it loads the weights, and the position in the data. Plain data and tensors.
        signals: Asked after every step.
        every_steps: Optimizer steps between saves within an epoch; ``None``: after ``every_seconds``.
        every_seconds: Wall time between saves within an epoch. When a run saves does not change what it computes.
    """

    def __init__(
        self,
        path: Path,
        *,
        beside: Callable[[], dict[str, Any]],
        signals: Signals,
        every_steps: int | None = None,
        every_seconds: float = 60.0,
    ) -> None:
        self.path = path
        self._beside = beside
        self._signals = signals
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._saved_at = time.monotonic()
        self._generators: dict[str, Any] | None = None
        self._due: dict[int, float] = {}
        self._ended = self._late = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the run's own state and that of every random generator."""
        own = {"generators": generators(), "due": self._due, "ended": self._ended}
        checkpoint["run"] = {**self._beside(), **own}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the generators' state until training begins: setting the network up draws numbers, too."""
        self._generators = checkpoint["run"]["generators"]
        self._due = checkpoint["run"].get("due", {})  # not in those of older versions
        trainer.should_stop = checkpoint["run"].get("ended", False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defer signals to the end of a step from here on."""
        self._signals.install()
        self._signals.waiting = True
        self._saved_at = time.monotonic()
        if self._generators is not None:
            set_generators(self._generators)
            self._generators = None
            for index, value in self._due.items():
                pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch, if a save is due."""
        done = batch_idx + 1
        last = done == trainer.num_training_batches or 0 <= trainer.max_steps <= trainer.global_step
        if last or done % trainer.accumulate_grad_batches:
            return  # the epoch's end saves anyway; half an accumulated gradient cannot be saved
        if self._every_steps is not None:
            due = trainer.global_step % self._every_steps == 0
        else:
            due = time.monotonic() - self._saved_at >= self._every_seconds
        due, stop = self._agreed(trainer, due or self._late)
        # A run that goes on from here would not validate first, as this one does: the next step saves.
        self._late = (due or stop is not None) and _validates_now(trainer)
        if (due or stop) and not self._late:
            self._due = due_schedulers(trainer, "step", done)
            self.save(trainer)
            self._leave(stop)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stop a run within a long validation if a signal came; it resumes from the last save."""
        if trainer.world_size == 1:
            self._leave(self._signals.received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and stop if a signal came."""
        _, stop = self._agreed(trainer, True)
        self._ended = trainer.should_stop  # early stopping has seen the epoch, and would go on for another one
        self._due = due_schedulers(trainer, "epoch", trainer.current_epoch + 1)
        self.save(trainer)
        self._leave(stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle signals at once again, also one that came during the last save."""
        self._signals.waiting = False
        if trainer.is_global_zero:
            self._leave(self._signals.received)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Handle signals at once again."""
        self._signals.waiting = False

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint after the curves, so that everything in it has been logged."""
        for logger in trainer.loggers:
            flush = getattr(getattr(logger, "experiment", None), "flush", None)
            if flush is not None:
                flush()
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def _agreed(self, trainer: pl.Trainer, due: bool) -> tuple[bool, str | None]:
        """Whether to save, and which signal asks to stop: one decision for all ranks.

        Clocks differ, and a job scheduler may have signalled only one of them.
        """
        stop = self._signals.received
        if trainer.world_size > 1:
            names = [None, *sorted(("SIGTERM", "SIGUSR1", "SIGINT"))]
            mine = torch.tensor([int(due), names.index(stop)], device=trainer.strategy.root_device)
            both: torch.Tensor = trainer.strategy.reduce(mine, reduce_op="max")
            due, stop = bool(both[0]), names[int(both[1])]
        return due, stop

    def _leave(self, stop: str | None) -> None:
        if stop is not None:
            raise Interrupted(stop)


def _validates_now(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the step that ends."""
    loop: Any = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def due_schedulers(trainer: pl.Trainer, interval: str, done: int) -> dict[int, float]:
    """Schedulers that Lightning steps after the checkpoint, by a metric that it does not save, and that metric.

    A resumed run steps them first. ``done`` counts the steps of the epoch, or the epochs, as ``interval`` says.
    """
    found: dict[int, float] = {}
    for index, config in enumerate(trainer.lr_scheduler_configs):
        if config.reduce_on_plateau and config.interval == interval and done % config.frequency == 0:
            value = trainer.callback_metrics.get(str(config.monitor))
            found |= {} if value is None else {index: float(value)}
    return found
