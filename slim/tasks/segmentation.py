"""One class per pixel."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from slim.errors import expect_number
from slim.tasks.task import OptimizerFactory, SchedulerFactory, Task

IGNORE_INDEX = 255
"""Pixels with this label count nowhere, as in PASCAL VOC."""


class MeanIoU(Metric):
    """Mean over the classes of intersection over union, from exact counts of pixels over the whole set.

    As PASCAL VOC counts; the mean of batches would be another figure. Classes that are neither in the labels nor
    predicted are left out. Needs no number of classes: a label is a byte.

    >>> metric = MeanIoU()
    >>> metric.update(torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 1]]))
    >>> float(metric.compute())
    0.5
    """

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Rows: pixels of a class found as such, predicted as such, labelled as such.
        self.add_state("counts", torch.zeros(3, IGNORE_INDEX, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add pixels: classes and labels, int64 of one shape."""
        counted = labels != IGNORE_INDEX
        predicted, labels = predicted[counted], labels[counted]
        parts = (labels[predicted == labels], predicted, labels)
        self.counts += torch.stack([torch.bincount(part, minlength=IGNORE_INDEX) for part in parts])

    def compute(self) -> Tensor:
        """The mean (), float64."""
        both, predicted, labelled = self.counts.double()
        either = predicted + labelled - both
        miou: Tensor = (both / either)[either > 0].mean()
        return miou


class Segmentation(Task):
    """Trains ``network`` on batches ``(x: float (N, C, H, W), y: int64 (N, H, W))`` with cross-entropy per pixel.

    Pixels labelled 255 are ignored. Logs ``train/loss``, ``val/loss``, ``val/miou``, ``val/accuracy`` (of pixels) and
    the same of ``test``.

    Args:
        network: Maps ``x`` to logits ``(N, classes, H, W)``, or to a dict with them under ``out`` and, where it has
            one, an auxiliary classifier's under ``aux``, as torchvision's do. Trained in place.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``; in training only.
        aux_weight: Of the auxiliary classifier's loss (torchvision's reference training: 0.5).
        channels_last: Keep images and weights in channels-last memory.
        compile: Run the network through ``torch.compile``.

    Raises:
        SlimError: ``aux_weight`` is no number of at least 0.
    """

    METRICS = ("loss", "accuracy", "miou")
    """What is logged of validation and test."""

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        label_smoothing: float = 0.0,
        aux_weight: float = 0.5,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(
            network,
            ("train/loss", *(f"{stage}/{name}" for stage in _HELD_OUT for name in _MEANS)),
            optimizer=optimizer,
            scheduler=scheduler,
            channels_last=channels_last,
            compile=compile,
        )
        expect_number("aux_weight", aux_weight, "[0, inf)", "Set module.aux_weight=0.5.")
        self.network = network
        self._label_smoothing, self._aux_weight = label_smoothing, aux_weight
        self._miou = nn.ModuleDict({stage: MeanIoU() for stage in _HELD_OUT})

    def forward(self, x: Tensor) -> Tensor:
        """``x (N, C, H, W)`` to logits ``(N, classes, H, W)``."""
        return self._logits(x)["out"]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss () over the pixels of one batch, with that of the auxiliary classifier."""
        x, y = batch
        logits = self._logits(x)
        loss = self._loss(logits["out"], y, self._label_smoothing)
        if "aux" in logits:
            loss = loss + self._aux_weight * self._loss(logits["aux"], y, self._label_smoothing)
        self._means.log(self, "train/loss", loss, len(y))
        return loss

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Classes ``(N, H, W)`` of a batch with or without labels."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
        return logits.argmax(1)

    def _logits(self, x: Tensor) -> dict[str, Tensor]:
        given = self._run(x)
        given = {"out": given} if isinstance(given, Tensor) else given
        return {name: value.float() for name, value in given.items() if name in ("out", "aux")}

    def _loss(self, logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
        # Not the mean of F.cross_entropy: it is NaN where all pixels are to be ignored.
        total = F.cross_entropy(logits, y, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="sum")
        return total / (y != IGNORE_INDEX).sum().clamp(min=1)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        logits = self(x)
        counted = y != IGNORE_INDEX
        classes = logits.argmax(1)
        self._means.log(self, f"{stage}/loss", self._loss(logits, y), float(counted.sum()))
        self._means.log(self, f"{stage}/accuracy", (classes == y)[counted])
        miou = cast(MeanIoU, self._miou[stage])
        miou.update(classes, y)
        self.log(f"{stage}/miou", miou, on_step=False, on_epoch=True, batch_size=1)

    def _restart(self, stage: str) -> None:
        super()._restart(stage)
        if stage in self._miou:
            cast(MeanIoU, self._miou[stage]).reset()


_HELD_OUT, _MEANS = ("val", "test"), ("loss", "accuracy")
