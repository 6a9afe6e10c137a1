"""Lightning Trainers of a run: one for each training phase, and short-lived ones that evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from slim.data.image_data import ImageData
from slim.errors import SlimError
from slim.runs.checkpoint import SafeFiles
from slim.runs.components import Components
from slim.runs.construct import check
from slim.runs.failures import quiet
from slim.runs.loggers import Loggers

OURS = (
    *("accelerator", "devices", "num_nodes", "strategy", "use_distributed_sampler", "enable_progress_bar"),
    *("enable_model_summary", "precision", "max_epochs", "accumulate_grad_batches", "gradient_clip_val"),
    *("num_sanity_val_steps", "deterministic", "logger", "callbacks", "plugins", "enable_checkpointing"),
    *("log_every_n_steps", "limit_val_batches", "default_root_dir", "overfit_batches"),
    *("limit_test_batches", "limit_predict_batches"),
)
"""Arguments that a run gives its Trainers itself, or that none of them would have a use for."""
KEYS = {
    **{"accumulate_grad_batches": "trainer.accumulate", "gradient_clip_val": "trainer.clip"},
    **{"log_every_n_steps": "trainer.log_every", "max_epochs": "epochs of the phases (sparse.epochs, ...)"},
}
"""Their keys in the configuration, where these have other names."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse ``trainer.options`` that no Trainer takes, or that a run sets itself.

    Raises:
        SlimError: It names the option.
    """
    check(pl.Trainer, options, "trainer.options")
    for name in options:
        if name in OURS:
            raise SlimError(
                f"trainer.options are what a run does not give its Trainer itself. Got {name}={options[name]}. "
                f"Set {KEYS.get(name, 'the key of its own in trainer')}, or leave it out."
            )
    if not options:
        return
    try:
        with quiet():  # made only for what it says of its arguments
            pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=True, max_epochs=1, **options)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise SlimError(f"trainer.options must fit. Got {options}: {error} Change trainer.options.") from error


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
    trainer = pl.Trainer(
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
        **{**wanted.options, "limit_train_batches": wanted.limit_train_batches},
    )
    # Under max_steps Lightning goes on with an epoch that has ended, and counts it again without a step.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return trainer


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
