"""Somebody outside looks at the curve of a run while it trains, and may end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from slim.errors import RunFailed
from slim.runs.curves import epoch_metrics, tags_of
from slim.runs.schema import Config

Watch = Callable[[int, float], None]
"""Called after every epoch with its number, over all training phases from 0, and the metric on held-out data."""


class Pruned(RunFailed):
    """Whoever watches found the run hopeless. Nothing is lost: it can go on."""


class Watched(Checkpoint):
    """Shows ``watch`` the metric of every epoch of a phase.

    A ``Checkpoint`` for the reason that :class:`slim.runs.curves.Curves` is one: modules log in an earlier hook.

    Args:
        watch: May raise :class:`Pruned`.
        metric: As the module logs it.
        before: Epochs of the phases before this one.
    """

    def __init__(self, watch: Watch, metric: str, before: int) -> None:
        self.watch, self.metric, self.before = watch, metric, before

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch."""
        found = epoch_metrics(trainer)
        value = next((found[tag] for tag in tags_of(self.metric) if tag in found), None)
        if value is not None and trainer.is_global_zero:
            self.watch(self.before + trainer.current_epoch, value)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: whoever watches remembers."""
        return {}


def epochs_before(config: Config, name: str) -> int:
    """Epochs of all training phases before the phase ``name`` (``finetune-2``: of the second pass)."""
    count = 0
    for number in range(len(config.passes)):
        for kind in config.phases:
            if kind in ("prune", "export") or (number and kind == "baseline"):
                continue
            if name == (kind if number == 0 else f"{kind}-{number + 1}"):
                return count
            count += config.training(kind).epochs
    return count
