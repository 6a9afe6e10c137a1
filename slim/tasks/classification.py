"""One label per image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from slim.tasks.means import STAGES
from slim.tasks.task import OptimizerFactory, SchedulerFactory, Task


class Classification(Task):
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
        super().__init__(
            network,
            (f"{stage}/{name}" for stage in STAGES for name in self.METRICS),
            optimizer=optimizer,
            scheduler=scheduler,
            channels_last=channels_last,
            compile=compile,
        )
        self.network = network
        self._label_smoothing = label_smoothing

    def forward(self, x: Tensor) -> Tensor:
        """``x (N, C, H, W)`` to logits ``(N, classes)``."""
        logits: Tensor = self._run(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss () of one batch."""
        return self._step("train", batch, self._label_smoothing)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits ``(N, classes)`` of a batch with or without labels."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
        return logits

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        self._step(stage, batch)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
        x, y = batch
        logits = self(x).float()
        loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
        self._means.log(self, f"{stage}/loss", loss, len(y))
        self._means.log(self, f"{stage}/accuracy", logits.argmax(1) == y)
        return loss
