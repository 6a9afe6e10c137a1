"""What the schedule asks of a pass: callbacks of its training phases, and the weights that the thin network gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
from torch import nn

import slim
from slim.callbacks.schedule import EarlyWeights, SoftCuts
from slim.channels import plan_of
from slim.errors import SlimError
from slim.pipeline import cut
from slim.pipeline.workspace import Workspace

EARLY = "early.safetensors"
"""The dense network at the epoch that ``rewind`` goes back to; in the run directory."""


def callbacks(work: Workspace, directory: Path, name: str, number: int) -> list[pl.Callback]:
    """For the training phase ``name`` of the pass ``number``; they come before surgery in place."""
    settings = work.settings
    step = settings.steps[number]
    found: list[pl.Callback] = []
    if step.soft_every and name.partition("-")[0] == "sparse":
        found.append(SoftCuts(lambda graph: cut.select(work, graph, number).removed, step.soft_every))
    if step.weights == "rewound" and step.rewind_epoch and name == settings.first:
        found.append(EarlyWeights(directory / EARLY, step.rewind_epoch))
    return found


def restart(
    work: Workspace, directory: Path, start: Callable[[], nn.Module], thin: nn.Module, number: int
) -> tuple[nn.Module, str]:
    """The shape of ``thin`` with the weights of the pass's schedule, and a line that says which they are.

    Args:
        work: Builds networks.
        directory: The run directory.
        start: Gives what the first training phase began with.
        thin: The network after the cut of the pass ``number``.
        number: 0-based.

    Raises:
        SlimError: The run began with a network that was thinner than the dense one: there is nothing to go back to.
    """
    settings, plan = work.settings, plan_of(thin)
    step = settings.steps[number]
    if step.weights == "fresh":
        # Draw 0 made the network that was trained.
        dense, said = work.dense(number + 1), f"fresh random weights (seed {settings.seed}, draw {number + 1})"
    elif step.rewind_epoch:
        dense = slim.load(directory / EARLY, work.dense())
        said = f"its weights after epoch {step.rewind_epoch} of {settings.first}"
    else:
        dense, said = start(), "the weights it had before any training"
    if plan_of(dense) is not None:
        raise SlimError(
            "schedule=rewind needs a run that begins with a dense network. "
            f"Got checkpoint={settings.checkpoint}, which is thinner. Set schedule=scratch, or another checkpoint."
        )
    line = f"The thin network goes on from {said}: nothing that was trained after that is in it."
    before = 0 if settings.first is None else getattr(settings, settings.first).epochs
    if settings.finetune.epochs < before:
        line += (
            f" It trains for {settings.finetune.epochs} epochs, the network before the cut for {before}: as a control"
            " it needs as many."
        )
    return (dense if plan is None else slim.rebuild(dense, plan)), line
