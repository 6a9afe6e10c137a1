"""Lightning Trainers of a run: one for each training phase, and short-lived ones that evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from slim.data.image_data import ImageData
from slim.runs.checkpoint import SafeFiles
from slim.runs.components import Components
from slim.runs.loggers import Loggers


def training_trainer(
    parts: Components,
    epochs: int,
    directory: Path,
    name: str,
    loggers: Loggers,
    *,
    steps_before: int,
    first_step: int,
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """The Trainer of the phase ``name``.

    Args:
        parts: Of the run.
        epochs: Of the phase.
        directory: The run directory; events go to ``directory/name``.
        name: Of the phase.
        loggers: Of the run.
        steps_before: Optimizer steps of the phases that this one goes on from.
        first_step: Points from this step on belong to a past that did not happen; TensorBoard drops what is purged.
        callbacks: Of the phase.
    """
    wanted = parts.config.trainer
    return pl.Trainer(
        **_placement(parts),
        precision=parts.hardware.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        accumulate_grad_batches=wanted.accumulate,
        gradient_clip_val=wanted.clip,
        num_sanity_val_steps=0,
        deterministic=wanted.deterministic,
        logger=loggers.of(name, before=steps_before, first_step=first_step),
        callbacks=list(callbacks),
        plugins=[SafeFiles()],
        enable_checkpointing=True,
        log_every_n_steps=wanted.log_every,
        limit_val_batches=wanted.limit_batches,
        default_root_dir=directory,
        **wanted.options,
    )


def evaluation_trainer(parts: Components, **options: Any) -> pl.Trainer:
    """A Trainer that validates or tests, in full precision, and writes nothing."""
    return pl.Trainer(**_placement(parts), logger=False, enable_checkpointing=False, **options)


def _placement(parts: Components) -> dict[str, Any]:
    """Where a Trainer computes, and what none of them prints."""
    wanted = parts.config.trainer
    several = wanted.processes > 1 or wanted.strategy == "ddp"
    return {
        "accelerator": parts.hardware.accelerator,
        "devices": wanted.devices,
        "num_nodes": wanted.num_nodes,
        "strategy": "ddp" if several else "auto",
        # Our image loaders give each process its share by themselves.
        "use_distributed_sampler": not isinstance(parts.data, ImageData),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
