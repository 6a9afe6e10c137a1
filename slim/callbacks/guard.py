"""Stops a run at the step where its loss is no longer a number."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from slim.errors import RunFailed


class Guard(pl.Callback):
    """Watches the training loss.

    On the CPU every step is looked at. On an accelerator the number of the first bad step is kept on the device and
    read every ``every`` steps and before each checkpoint, so that watching never waits for the device.

    Args:
        phase: For the message.
        every: Steps between two looks, on an accelerator.
    """

    def __init__(self, phase: str, every: int = 10) -> None:
        self._phase = phase
        self._every = every
        self._bad: Tensor | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new epoch, a new count of batches."""
        self._bad = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the batch's loss."""
        loss: Tensor = outputs["loss"].detach()
        here = torch.where(torch.isfinite(loss), -1, batch_idx)
        self._bad = here if self._bad is None else torch.where(self._bad >= 0, self._bad, here)
        if loss.device.type == "cpu" or batch_idx % self._every == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing bad gets into the epoch's checkpoint."""
        self._look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nor into one within the epoch."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        bad = -1 if self._bad is None else int(self._bad)
        if bad >= 0:
            raise RunFailed(
                f"The loss must be finite. Got loss=nan or inf ({self._phase}, epoch {trainer.current_epoch + 1}, "
                f"batch {bad}, step {trainer.global_step}). Try a lower {self._phase}.lr, "
                "trainer.clip=1, scheduler.warmup=0.05 or "
                "trainer.precision=fp32; the last good checkpoint is kept."
            )
