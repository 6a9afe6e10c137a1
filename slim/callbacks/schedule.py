"""What a schedule does while a network trains: soft cuts after an epoch, and early weights kept for later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl

from slim.artifact import save
from slim.callbacks.slimming import agreed
from slim.channels import ChannelGraph, plan_of
from slim.module import Classifier
from slim.selection import soften


class SoftCuts(pl.Callback):
    """Silences what a cut would take after every ``every`` epochs but the last; it trains on and may grow back.

    Args:
        choose: From the graph of the network to the groups (groups,) that would go. Rank 0 is asked, all follow.
        every: Epochs between two soft cuts.
    """

    def __init__(self, choose: Callable[[ChannelGraph], npt.NDArray[np.bool_]], every: int) -> None:
        self._choose = choose
        self._every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """The checkpoint of the epoch is written after this, with the silenced weights in it."""
        epoch = trainer.current_epoch + 1
        graph = pl_module.graph
        if graph is None or epoch % self._every or epoch >= (trainer.max_epochs or 0):
            return
        removed = self._choose(graph) if trainer.is_global_zero else np.zeros(len(graph), dtype=bool)
        if trainer.world_size > 1:
            removed = agreed(trainer, graph, removed)
        soften(graph, removed)


class EarlyWeights(pl.Callback):
    """Keeps the network as it is after ``epoch`` epochs, whole or not at all.

    A run that is killed before the checkpoint of that epoch trains it again, and writes the same weights again.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self._path = path
        self._epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Write them when it is time."""
        if trainer.current_epoch + 1 == self._epoch and trainer.is_global_zero:
            with pl_module.settled():
                save(self._path, pl_module.network, plan_of(pl_module.network))
