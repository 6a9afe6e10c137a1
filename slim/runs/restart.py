"""Controls: the thin network goes on from rewound or fresh weights instead of the trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

import slim
from slim.lightning import find_network
from slim.runs import weights
from slim.runs.components import Components

EARLY = "early.safetensors"
"""The dense module at the epoch that ``rewind`` goes back to; in the run directory."""


class EarlyWeights(pl.Callback):
    """Saves the module's weights after ``epoch`` epochs, atomically.

    A run that is killed before the checkpoint of that epoch trains it again, and writes the same weights again.
    """

    def __init__(self, path: Path, epoch: int, network: str | None) -> None:
        self._path, self._epoch, self._network = path, epoch, network

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the weights at the end of epoch ``epoch``."""
        if trainer.current_epoch + 1 == self._epoch and trainer.is_global_zero:
            weights.save(self._path, pl_module, find_network(pl_module, self._network))


def restarted(
    parts: Components, directory: Path, start: Path | None, plan: slim.Plan | None, number: int
) -> tuple[Any, str]:
    """The thin shape with the weights of the pass's schedule, and a line that says which they are.

    Args:
        parts: Builds modules.
        directory: The run directory.
        start: Weights that the first training phase began with; ``None``: the untrained ones.
        plan: The cut of the pass ``number``, from the dense network.
        number: 0-based.
    """
    config = parts.config
    step = config.passes[number]
    if step.weights == "fresh":
        # Draw 0 made the network that was trained.
        module: Any = parts.module(draw=number + 1)
        line = f"fresh random weights (seed {config.seed}, draw {number + 1})"
    elif step.rewind_epoch:
        module = weights.load(parts, directory / EARLY)
        line = f"its weights after epoch {step.rewind_epoch} of {config.first}"
    else:
        module = parts.module() if start is None else weights.load(parts, start)
        line = "the weights it had before any training"
    parts.thin(module, plan)
    line = f"The thin network goes on from {line}: nothing that was trained after that is in it."
    before = 0 if config.first is None else config.training(config.first).epochs
    if config.finetune.epochs < before:
        line += (
            f" It trains for {config.finetune.epochs} epochs, the network before the cut for {before}: as a control"
            " it needs as many."
        )
    return module, line
