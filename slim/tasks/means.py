"""Means over an epoch that are exact, the same in any number of processes, and survive a checkpoint in between."""

from __future__ import annotations

from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

STAGES = ("train", "val", "test")


class EpochMean(Metric):
    """Weighted mean of everything that an epoch gave, over all processes.

    ``torchmetrics.MeanMetric`` adds in float32 and leaves NaN out; here sums are float64, so that they do not depend on
    the length of the epoch, and a loss that is NaN stays NaN.

    >>> mean = EpochMean()
    >>> mean.update(torch.tensor(3.0), 3)
    >>> mean.update(torch.tensor(0.0), 2)
    >>> float(mean.compute())
    0.6
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor, weight: float) -> None:
        """Add ``total`` (), the sum of ``weight`` values."""
        self.total += total.detach().double()
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean (), float64."""
        return self.total / self.weight


class EpochMeans(nn.ModuleDict):
    """One :class:`EpochMean` per name, for a LightningModule that holds it as an attribute.

    Args:
        names: Such as ``val/loss``; what comes before the slash is the stage.
    """

    def __init__(self, *names: str) -> None:
        super().__init__({name: EpochMean() for name in names})

    def log(self, module: pl.LightningModule, name: str, value: Tensor, weight: float | None = None) -> None:
        """Add to the mean ``name``, which Lightning logs when the epoch ends.

        Args:
            module: The one that holds these means.
            name: Of the mean.
            value: Of any shape: its elements count one each; or () with ``weight``: the mean of so many.
            weight: See ``value``.
        """
        value = value.detach().double()
        mean = self._mean(name)
        mean.update(value.sum() if weight is None else value * weight, value.numel() if weight is None else weight)
        # The batch size is no matter: the metric weighs by itself.
        module.log(name, mean, on_step=False, on_epoch=True, batch_size=1)

    def restart(self, stage: str) -> None:
        """Forget what is left of an epoch of ``stage`` that did not end."""
        for name in self:
            if name.startswith(f"{stage}/"):
                self._mean(name).reset()

    def state(self, module: pl.LightningModule) -> dict[str, list[float]]:
        """The sums of the running training epoch over all processes, for a checkpoint; every process calls this.

        They are no part of ``state_dict``, which holds weights alone.
        """
        names = [name for name in self if name.startswith("train/")]
        means = [self._mean(name) for name in names]
        sums = torch.stack([torch.stack([mean.total, mean.weight]) for mean in means])
        sums = module.trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(names, sums.tolist(), strict=True))

    def load_state(self, module: pl.LightningModule, state: dict[str, list[float]]) -> None:
        """Go on with the sums that :meth:`state` gave, in one of the processes, however many there are."""
        if module.global_rank == 0:
            for name, (total, weight) in state.items():
                if weight:
                    self._mean(name).update(torch.tensor(total, dtype=torch.float64), weight)

    def _mean(self, name: str) -> EpochMean:
        return cast(EpochMean, self[name])
