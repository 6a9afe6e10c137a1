"""One training phase, with a Trainer and an optimizer of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from slim.channels import Plan, plan_of
from slim.runs import weights
from slim.runs.checkpoint import Saver, read
from slim.runs.components import Components
from slim.runs.curves import tags_of
from slim.runs.failures import explained, quiet
from slim.runs.loaders import resumable, seed_all
from slim.runs.loggers import Loggers
from slim.runs.phase_callbacks import PhaseCallbacks
from slim.runs.schema import PHASES
from slim.runs.signals import Signals
from slim.runs.trainer import training_trainer


@dataclass
class Trained:
    """What a training phase leaves: the module, its figures for state.json, and a line where it ended too early."""

    module: pl.LightningModule
    figures: dict[str, Any]
    unfinished: str | None


def train(
    parts: Components,
    directory: Path,
    name: str,
    before: Path | None,
    signals: Signals,
    loggers: Loggers,
    *,
    number: int = 0,
    steps_before: int = 0,
    note: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train for the phase ``name``, or go on with it where its checkpoint ends.

    Args:
        parts: Of the run.
        directory: The run directory; curves and the checkpoint go to ``directory/name``.
        name: ``baseline``, ``sparse``, ``finetune``, with ``-2`` and so on for later passes.
        before: Weights that the phase begins with; ``None``: the untrained module.
        signals: Looked at between steps.
        loggers: Where curves go.
        number: Of the pass, 0-based.
        steps_before: Optimizer steps of the phases that this one goes on from; curves continue theirs.
        note: Called with lines for the report.
    """
    config, kind = parts.config, name.partition("-")[0]
    checkpoint = directory / name / "last.ckpt"
    saved = read(checkpoint) if checkpoint.is_file() else None
    module = _begin(parts, kind, before, saved)
    network = parts.network(module)
    run = {} if saved is None else saved["run"]
    callbacks = PhaseCallbacks(parts, directory, name, number, network)
    key = (config.seed, number)
    seed_all(config.seed, number, PHASES.index(kind))
    seconds = _stopwatch(run.get("seconds", 0.0))
    with (
        quiet(),
        explained(config.data.get("batch_size")),
        resumable(parts.data, key, config.trainer.limit_train_batches, run.get("position")) as position,
    ):
        saver = Saver(
            checkpoint,
            beside=lambda: {
                "plan": _plan_json(network),
                "position": position.state_dict(),
                "seconds": seconds(),
                "forecast": callbacks.forecast_line(run),
                "unfinished": callbacks.unfinished(run),
            },
            signals=signals,
            every_steps=config.trainer.checkpoint_every,
        )
        trainer = _trainer(parts, directory, name, saved, loggers, steps_before, [*callbacks.all, saver])
        trainer.fit(module, datamodule=parts.data, ckpt_path=checkpoint if saved is not None else None)
    parts.data.trainer = None  # which holds the module
    if line := callbacks.forecast_line(run):
        note(line)
    module.cpu().eval()
    progress: Any = trainer.fit_loop.epoch_progress.current  # an option or a callback may have ended it early
    figures = _figures(parts, callbacks, progress.processed, trainer.global_step, seconds())
    return Trained(module, figures, callbacks.unfinished(run))


def _stopwatch(earlier: float) -> Callable[[], float]:
    """Seconds since now, and ``earlier`` ones before."""
    began = time.monotonic()
    return lambda: earlier + time.monotonic() - began


def _trainer(
    parts: Components,
    directory: Path,
    name: str,
    saved: dict[str, Any] | None,
    loggers: Loggers,
    steps_before: int,
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    # Points after the checkpoint belong to a past that did not happen; a phase that was killed before its first
    # checkpoint may have left points, too.
    first_step = 0 if saved is None else int(saved["global_step"]) + 1
    epochs = parts.config.training(name.partition("-")[0]).epochs
    return training_trainer(
        parts, epochs, directory, name, loggers, steps_before=steps_before, first_step=first_step, callbacks=callbacks
    )


def _begin(parts: Components, kind: str, before: Path | None, saved: dict[str, Any] | None) -> pl.LightningModule:
    """The module that the phase trains: with the weights in ``before``, or thinned for the checkpoint to resume."""
    if saved is not None:
        text = saved["run"]["plan"]
        module = parts.module(kind, plan=None if text is None else Plan.from_json(text))
    elif before is None:
        module = parts.module(kind)
    else:
        module = weights.load(parts, before, kind)
    # Lightning leaves modes as it finds them.
    module.train()
    return module


def _plan_json(network: nn.Module) -> str | None:
    """The plan that made ``network`` from the dense one, as JSON."""
    plan = plan_of(network)
    return None if plan is None else plan.to_json()


def _figures(parts: Components, callbacks: PhaseCallbacks, epochs: int, steps: int, seconds: float) -> dict[str, Any]:
    curves = callbacks.curves
    figures: dict[str, Any] = {"epochs": epochs, "steps": steps, "seconds": seconds, "history": curves.history}
    if callbacks.slimming is not None and callbacks.slimming.history:
        figures["slimmed"] = [{"epoch": cut["epochs"], **cut} for cut in callbacks.slimming.history]
    metric = parts.config.metric
    keys = (tag.replace("/", "_") for tag in tags_of(metric.name))
    values = next((curves.history[key] for key in keys if key in curves.history), [])
    known = {epoch: value for epoch, value in enumerate(values, start=1) if value is not None}
    if known:
        figures["val"] = known[max(known)]
    if finite := [epoch for epoch, value in known.items() if math.isfinite(value)]:
        best = max(finite, key=lambda epoch: known[epoch] * (1 if metric.mode == "max" else -1))
        figures |= {"best_val": known[best], "best_epoch": best}
    return figures
