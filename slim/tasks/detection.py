"""Boxes and their classes."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.tasks.detector_view import RawOutputs, raw_outputs
from slim.tasks.task import OptimizerFactory, SchedulerFactory, Task

Targets = list[dict[str, Tensor]]
Pair = tuple[dict[str, Tensor], dict[str, Tensor]]
"""What was found on an image, and what is on it."""


class Detection(Task):
    """Trains a detector with torchvision's interface on batches ``(images, targets)``.

    ``images`` is float (N, C, H, W) in [0, 1] or a list of (C, H, W); each target has ``boxes`` float (n, 4), x1, y1,
    x2, y2 in pixels, and ``labels`` int64 (n,), 1 or more. Logs ``train/loss``, the sum of the detector's losses, and
    ``val/map``, ``val/map_50``, ``test/map`` and ``test/map_50``: COCO's mean average precision over IoU 0.5 to 0.95,
    and at 0.5, of all images in all processes; NaN where there is nothing to find.

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
        super().__init__(
            network,
            ["train/loss"],
            optimizer=optimizer,
            scheduler=scheduler,
            channels_last=channels_last,
            compile=compile,
        )
        self.detector = network
        self._average_precision = average_precision()
        self._seen: list[Pair] = []

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

    def predict_step(self, batch: Any, batch_idx: int) -> Targets:
        """Predictions for a batch with or without targets."""
        found: Targets = self(batch[0] if isinstance(batch, tuple) else batch)
        return found

    def _evaluate(self, stage: str, batch: tuple[Any, Targets]) -> None:
        images, targets = batch
        self._seen += zip(map(_measured, self(images)), map(_measured, targets), strict=True)

    def _log(self, stage: str) -> None:
        seen, metric = _of_all_processes(self._seen), self._average_precision
        metric.reset()
        metric.update([found for found, _ in seen], [target for _, target in seen])
        computed = metric.compute()
        self._seen.clear()
        # COCO says -1 where there was nothing to find, which would pass for a figure.
        figures = {name: float(computed[name]) if computed[name] >= 0 else math.nan for name in self.METRICS}
        # Every process has computed the same figures; their mean is what Lightning wants to be told.
        self.log_dict({f"{stage}/{name}": value for name, value in figures.items()}, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """COCO's figures of the epoch."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """COCO's figures of the test data."""
        self._log("test")

    def _restart(self, stage: str) -> None:
        super()._restart(stage)
        self._seen.clear()


def _measured(one: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the metric looks at, on the CPU; masks and keypoints would fill the memory."""
    names = [name for name in ("boxes", "scores", "labels", "iscrowd", "area") if name in one]
    return {name: one[name].float().cpu() if one[name].is_floating_point() else one[name].cpu() for name in names}


def _of_all_processes(seen: list[Pair]) -> list[Pair]:
    """The images of all processes, in the order in which one process would have seen them.

    torchmetrics itself gathers image by image, where processes that have unequally many wait for each other.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return seen
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, seen)
    return [pair for pairs in zip_longest(*shares) for pair in pairs if pair is not None]


def average_precision() -> Any:
    """``torchmetrics.detection.MeanAveragePrecision`` with the first backend that is installed, for one process.

    Raises:
        SlimError: none is.
    """
    from torchmetrics.detection import MeanAveragePrecision

    for backend in ("pycocotools", "faster_coco_eval"):
        try:
            return MeanAveragePrecision(backend=backend, sync_on_compute=False)
        except ModuleNotFoundError as error:
            missing = error
    raise SlimError(
        f"detection needs pycocotools or faster-coco-eval for its metric. Got {missing}. "
        "Run pip install 'slim-channels[detection]'."
    )
