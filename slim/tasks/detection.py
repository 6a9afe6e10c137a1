"""Boxes and their classes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.tasks.detector_view import RawOutputs, raw_outputs
from slim.tasks.layout import Runner
from slim.tasks.means import EpochMeans
from slim.tasks.optimization import OptimizerFactory, SchedulerFactory, configured

Targets = list[dict[str, Tensor]]


class Detection(pl.LightningModule):
    """Trains a detector with torchvision's interface on batches ``(images, targets)``.

    ``images`` is float (N, C, H, W) in [0, 1] or a list of (C, H, W); each target has ``boxes`` float (n, 4), x1, y1,
    x2, y2 in pixels, and ``labels`` int64 (n,), 1 or more. Logs ``train/loss``, the sum of the detector's losses, and
    ``val/map``, ``val/map_50``, ``test/map`` and ``test/map_50``: COCO's mean average precision over IoU 0.5 to 0.95,
    and at 0.5, of all images in all processes.

    Args:
        network: In training maps ``images, targets`` to a dict of losses, else ``images`` to one dict per image with
            ``boxes``, ``scores`` and ``labels``, as all detectors of torchvision do. Trained in place.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps.
        channels_last: Keep weights in channels-last memory.
        compile: Run the detector through ``torch.compile``.

    Attributes:
        detector: The whole detector.

    Raises:
        SlimError: nothing that computes COCO's metric is installed.
    """

    METRICS = ("map", "map_50")
    """What is logged of validation and test."""

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.detector = network
        self._optimizer, self._scheduler = optimizer, scheduler
        self._run = Runner(network, channels_last=channels_last, compile=compile)
        self._means = EpochMeans("train/loss")
        self._map = nn.ModuleDict({stage: average_precision() for stage in ("val", "test")})

    @property
    def network(self) -> RawOutputs:
        """The detector as a function of one tensor, images (N, C, H, W), to the raw outputs of its heads."""
        return raw_outputs(self.detector)

    def forward(self, images: Tensor | list[Tensor]) -> Targets:
        """Predictions, one dict of ``boxes``, ``scores`` and ``labels`` per image."""
        found: Targets = self._run(list(images))
        return found

    def training_step(self, batch: tuple[Any, Targets], batch_idx: int) -> Tensor:
        """Sum () of the detector's losses on one batch."""
        images, targets = batch
        losses: dict[str, Tensor] = self._run(list(images), targets)
        loss = torch.stack(list(losses.values())).sum()
        self._means.log(self, "train/loss", loss, len(targets))
        return loss

    def validation_step(self, batch: tuple[Any, Targets], batch_idx: int) -> None:
        """Keep the predictions of one batch of validation images."""
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Any, Targets], batch_idx: int) -> None:
        """Keep the predictions of one batch of test images."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Targets:
        """Predictions for a batch with or without targets."""
        found: Targets = self(batch[0] if isinstance(batch, tuple) else batch)
        return found

    def configure_optimizers(self) -> Any:
        """One optimizer over all trainable parameters, and its scheduler."""
        return configured(self, self._optimizer, self._scheduler)

    def _evaluate(self, stage: str, batch: tuple[Any, Targets]) -> None:
        images, targets = batch
        metric: Any = self._map[stage]
        metric.update(
            [
                {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
                for found in self(images)
            ],
            targets,
        )

    def _log(self, stage: str) -> None:
        metric: Any = self._map[stage]
        figures = metric.compute()
        metric.reset()
        # Every process has computed the same figures from the predictions of all.
        self.log_dict({f"{stage}/{name}": figures[name] for name in self.METRICS}, rank_zero_only=False)

    def on_validation_epoch_end(self) -> None:
        """COCO's figures of the epoch."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """COCO's figures of the test data."""
        self._log("test")

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
        self._restart("val")

    def on_test_start(self) -> None:
        """Prepare the memory format, see :meth:`Runner.prepare`."""
        self._restart("test")

    def _restart(self, stage: str) -> None:
        metric: Any = self._map[stage]
        self._run.prepare()
        metric.reset()

    # A checkpoint within an epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of the running epoch."""
        checkpoint["epoch_means"] = self._means.state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counterpart of :meth:`on_save_checkpoint`."""
        self._means.load_state(self, checkpoint.get("epoch_means", {}))


def average_precision() -> Any:
    """``torchmetrics.detection.MeanAveragePrecision`` with the first backend that is installed.

    Raises:
        SlimError: none is.
    """
    from torchmetrics.detection import MeanAveragePrecision

    for backend in ("pycocotools", "faster_coco_eval"):
        try:
            return MeanAveragePrecision(backend=backend)
        except ModuleNotFoundError as error:
            missing = error
    raise SlimError(
        f"detection needs pycocotools or faster-coco-eval for its metric. Got {missing}. "
        "Run pip install 'slim-channels[detection]'."
    )
