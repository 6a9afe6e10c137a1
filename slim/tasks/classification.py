"""One label per image."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.nn import functional as F

from slim.tasks.layout import Runner
from slim.tasks.means import STAGES, EpochMeans
from slim.tasks.optimization import OptimizerFactory, SchedulerFactory, configured


class Classification(pl.LightningModule):
    """Trains ``network`` on batches ``(x: float (N, C, H, W), y: int64 (N,))`` with cross-entropy.

    Logs ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``test/loss`` and ``test/accuracy``: means
    over all images of an epoch, in all processes.

    Args:
        network: Anything that maps ``x`` to logits ``(N, classes)``. Trained in place.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps; ``None`` for a constant
            learning rate.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``; in training only.
        channels_last: Keep images and weights in channels-last memory.
        compile: Run the network through ``torch.compile``.
    """

    METRICS = ("loss", "accuracy")
    """What is logged of validation and test."""

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self._optimizer, self._scheduler = optimizer, scheduler
        self._label_smoothing = label_smoothing
        self._run = Runner(network, channels_last=channels_last, compile=compile)
        self._means = EpochMeans(*(f"{stage}/{name}" for stage in STAGES for name in self.METRICS))

    def forward(self, x: Tensor) -> Tensor:
        """``x (N, C, H, W)`` to logits ``(N, classes)``."""
        logits: Tensor = self._run(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss () of one batch."""
        return self._step("train", batch, self._label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log one batch of validation images."""
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log one batch of test images."""
        self._step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits ``(N, classes)`` of a batch with or without labels."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
        return logits

    def configure_optimizers(self) -> Any:
        """One optimizer over all trainable parameters, and its scheduler."""
        return configured(self, self._optimizer, self._scheduler)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        x, y = batch
        logits = self(x).float()
        loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
        self._means.log(self, f"{stage}/loss", loss, len(y))
        self._means.log(self, f"{stage}/accuracy", logits.argmax(1) == y)
        return loss

    # Weights may be sliced or loaded between epochs

    def on_train_start(self) -> None:
        """Prepare the memory format, see :meth:`Runner.prepare`."""
        self._run.prepare()

    def on_train_epoch_start(self) -> None:
        """Prepare the memory format, and reset the epoch's means; not called where training resumes within an epoch."""
        self._run.prepare()
        self._means.restart("train")

    def on_validation_start(self) -> None:
        """Prepare the memory format, see :meth:`Runner.prepare`."""
        self._run.prepare()
        self._means.restart("val")

    def on_test_start(self) -> None:
        """Prepare the memory format, see :meth:`Runner.prepare`."""
        self._run.prepare()
        self._means.restart("test")

    # A checkpoint within an epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of the running epoch."""
        checkpoint["epoch_means"] = self._means.state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counterpart of :meth:`on_save_checkpoint`."""
        self._means.load_state(self, checkpoint.get("epoch_means", {}))
