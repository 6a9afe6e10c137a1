"""What all tasks share: an optimizer and its scheduler, the memory format of the weights, the means of an epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer

from slim.tasks.layout import Runner
from slim.tasks.means import EpochMeans

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""From parameters to an optimizer, such as ``functools.partial(torch.optim.SGD, lr=0.1)``."""

SchedulerFactory = Callable[[Optimizer, int], Any]
"""From an optimizer and the number of optimizer steps of the fit to a torch scheduler or Lightning's dict of one."""


class Task(pl.LightningModule):
    """A LightningModule that lacks its training step, and ``_evaluate``: what is logged of a batch of other data.

    Args:
        network: What the steps call, through ``self._run``. Trained in place.
        means: Names of what ``self._means`` logs, such as ``val/loss``.
        optimizer: Builds the optimizer from the parameters.
        scheduler: Builds the scheduler from the optimizer and the number of optimizer steps; ``None`` for a constant
            learning rate.
        channels_last: Keep images and weights in channels-last memory.
        compile: Run the network through ``torch.compile``.
    """

    def __init__(
        self,
        network: nn.Module,
        means: Iterable[str],
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        channels_last: bool,
        compile: bool,
    ) -> None:
        super().__init__()
        self._optimizer, self._scheduler = optimizer, scheduler
        self._run = Runner(network, channels_last=channels_last, compile=compile)
        self._means = EpochMeans(*means)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Look at one batch of held-out data."""
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Look at one batch of test data."""
        self._evaluate("test", batch)

    @abstractmethod
    def _evaluate(self, stage: str, batch: Any) -> None:
        """Log what one batch of ``val`` or ``test`` says of the network."""

    def configure_optimizers(self) -> Any:
        """One optimizer over all trainable parameters, and its scheduler.

        The scheduler steps once per optimizer step, unless its factory returns a dict with another ``interval``.
        """
        made = self._optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self._scheduler is None:
            return made
        schedule = self._scheduler(made, int(self.trainer.estimated_stepping_batches))
        if not isinstance(schedule, dict):
            schedule = {"scheduler": schedule}
        return {"optimizer": made, "lr_scheduler": {"interval": "step", **schedule}}

    # Weights may be sliced or loaded between epochs

    def on_train_start(self) -> None:
        """Prepare the memory format, see :meth:`Runner.prepare`."""
        self._run.prepare()

    def on_train_epoch_start(self) -> None:
        """Prepare the memory format, and reset the epoch's means; not called where training resumes within an epoch."""
        self._restart("train")

    def on_validation_start(self) -> None:
        """Prepare the memory format, and forget what is left of a validation that did not end."""
        self._restart("val")

    def on_test_start(self) -> None:
        """Prepare the memory format, and forget what is left of a test that did not end."""
        self._restart("test")

    def _restart(self, stage: str) -> None:
        self._run.prepare()
        self._means.restart(stage)

    # A checkpoint within an epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of the running epoch."""
        checkpoint["epoch_means"] = self._means.state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counterpart of :meth:`on_save_checkpoint`."""
        self._means.load_state(self, checkpoint.get("epoch_means", {}))
