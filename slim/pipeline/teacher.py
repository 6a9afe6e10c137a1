"""Whom a fine-tune listens to: the network before the cut, the dense one, or one from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

import slim
from slim.channels import plan_of
from slim.errors import SlimError
from slim.pipeline.source import load_network

if TYPE_CHECKING:
    from slim.pipeline.settings import Settings
    from slim.pipeline.workspace import Workspace

KEPT = "teacher.safetensors"
"""The run's own copy of a teacher that came from a file: a resumed run listens to the same one."""


def from_file(work: Workspace) -> nn.Module | None:
    """The teacher that the settings name a file for; ``None`` where they name none.

    Raises:
        SlimError: The file is missing, damaged, or of another architecture; or the dense teacher is not dense.
    """
    told, phases = work.settings.finetune.distill.teacher, work.settings.phases
    if told is None or "finetune" not in phases or work.settings.task != "train":
        return None
    if told == "dense" and "baseline" not in phases and work.start is not None and plan_of(work.start) is not None:
        raise SlimError(
            f"A dense teacher needs a dense network. Got checkpoint={work.settings.checkpoint}, which is thinner. "
            "Set finetune.distill.teacher=<file>, or add the baseline phase."
        )
    if told in ("sparse", "dense"):
        return None
    try:
        return load_network(work, Path(told))
    except SlimError as error:
        raise SlimError(
            f"A teacher must be a network of the configured model. Got finetune.distill.teacher={told}: {error}"
        ) from error


def keep(work: Workspace, directory: Path) -> None:
    """Before anything trains: copy a teacher from a file into the run directory, unless it is there."""
    if (directory / KEPT).is_file():
        return
    network = work.teacher or from_file(work)
    if network is not None:
        slim.save(directory / KEPT, network, plan_of(network))


def load(work: Workspace, directory: Path, number: int) -> nn.Module | None:
    """The teacher of the fine-tune of the pass ``number`` (0-based); ``None`` where there is none.

    Args:
        work: Builds networks.
        directory: The run directory, with what earlier phases left in it.
        number: Of the pass.
    """
    phase = source(work.settings, number)
    if phase is None:
        return None
    return slim.load(directory / KEPT if phase == KEPT else directory / phase / "network.safetensors", work.dense())


def source(settings: Settings, number: int) -> str | None:
    """The phase whose network teaches in the pass ``number``, ``start`` (what the run began with), or the kept file.

    A weight of 0 listens to nobody.
    """
    distill = settings.finetune.distill
    if distill.teacher is None or distill.weight == 0:
        return None
    if distill.teacher == "dense":
        return "baseline" if "baseline" in settings.phases else "start"
    if distill.teacher != "sparse":
        return KEPT
    if "sparse" in settings.phases:
        return f"sparse-{number + 1}" if number else "sparse"
    if number:  # pass after pass of cut and fine-tune
        return f"finetune-{number}" if number > 1 else "finetune"
    return settings.first or "start"
