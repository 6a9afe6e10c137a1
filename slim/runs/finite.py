"""Stops a run at the step where its loss is no longer a number."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from slim.errors import RunFailed


class Finite(pl.Callback):
    """Watches the training loss.

    On the CPU every loss is looked at before it reaches a gradient. On an accelerator the number of the first bad batch
    is kept on the device and read every ``every`` batches and before each checkpoint, so that watching never waits for
    the device; what fails in the meantime is reported by its cause.

    Args:
        phase: For the message.
        every: Steps between two looks, on an accelerator.
    """

    def __init__(self, phase: str, every: int = 10) -> None:
        self._phase = phase
        self._every = every
        self._bad: Tensor | None = None
        self._batch = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the count of batches."""
        self._bad = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, for the message."""
        self._batch = batch_idx

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Check the batch's loss before its gradients reach the penalty or the weights."""
        here = torch.where(torch.isfinite(loss.detach()), -1, self._batch)
        self._bad = here if self._bad is None else torch.where(self._bad >= 0, self._bad, here)
        if loss.device.type == "cpu" or self._batch % self._every == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the weights before the epoch's checkpoint is written."""
        self._look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check the weights before any other checkpoint is written: the last one stays usable."""
        self._look(trainer)
        for name, weights in pl_module.named_parameters():
            self._check(trainer, f"the weights {name}", weights)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Report the NaN or infinity instead of an error that followed from it."""
        if isinstance(exception, RunFailed) or not isinstance(exception, Exception):
            return
        self._look(trainer)
        for name, weights in pl_module.named_parameters():
            self._check(trainer, f"the gradient of {name}", weights.grad)
            self._check(trainer, f"the weights {name}", weights)

    def _check(self, trainer: pl.Trainer, what: str, values: Tensor | None) -> None:
        if values is not None and not bool(torch.isfinite(values).all()):
            raise self._failed(trainer, what, self._batch)

    def _look(self, trainer: pl.Trainer) -> None:
        bad = -1 if self._bad is None else int(self._bad)
        if bad >= 0:
            raise self._failed(trainer, "the loss", bad)

    def _failed(self, trainer: pl.Trainer, what: str, batch: int) -> RunFailed:
        return RunFailed(
            f"Numbers in training must be finite. Got NaN or infinity in {what} ({self._phase}, "
            f"epoch {trainer.current_epoch + 1}, batch {batch}, step {trainer.global_step}). Try a lower "
            f"{self._phase}.lr, trainer.clip=1, scheduler.warmup=0.05 or trainer.precision=fp32; "
            "the last good checkpoint is kept."
        )
