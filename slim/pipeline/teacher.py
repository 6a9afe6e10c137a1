"""Whom a phase listens to: the network before the cut, the dense one, or one from a file."""

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


def kept(kind: str) -> str:
    """Name of the run's own copy of a teacher that came from a file: a resumed run listens to the same one."""
    return f"{kind}-teacher.safetensors"


def from_files(work: Workspace) -> dict[str, nn.Module]:
    """The teachers that the settings name files for, by the kind of phase they teach.

    Raises:
        SlimError: The file is missing, damaged, or of another architecture; or the dense teacher is not dense.
    """
    settings = work.settings
    found: dict[str, nn.Module] = {}
    if settings.task != "train":
        return {}
    for kind, distill in settings.distills.items():
        name = distill.teacher
        if name is None:
            continue
        thin = work.start is not None and plan_of(work.start) is not None
        if name == "dense" and "baseline" not in settings.phases and thin:
            raise SlimError(
                f"A dense teacher needs a dense network. Got checkpoint={settings.checkpoint}, which is thinner. "
                f"Set {kind}.distill.teacher=<file>, or add the baseline phase."
            )
        if name in ("sparse", "dense"):
            continue
        try:
            found[kind] = load_network(work, Path(name))
        except SlimError as error:
            raise SlimError(
                f"A teacher must be a network of the configured model. Got {kind}.distill.teacher={name}: {error}"
            ) from error
    return found


def keep(work: Workspace, directory: Path) -> None:
    """Before anything trains: copy the teachers from files into the run directory, unless they are there."""
    named = [kind for kind in work.settings.distills if source(work.settings, kind, 0) == kept(kind)]
    missing = [kind for kind in named if not (directory / kept(kind)).is_file()]
    # A run that was killed before it came here goes on without having read them.
    networks = (work.teachers or from_files(work)) if missing else {}
    for kind in missing:
        slim.save(directory / kept(kind), networks[kind], plan_of(networks[kind]))


def load(work: Workspace, directory: Path, kind: str, number: int) -> nn.Module | None:
    """The teacher of a phase of the pass ``number`` (0-based); ``None`` where there is none.

    Args:
        work: Builds networks.
        directory: The run directory, with what earlier phases left in it.
        kind: Of the phase; a baseline has no teacher.
        number: Of the pass.
    """
    found = source(work.settings, kind, number)
    if found is None:
        return None
    file = directory / found if found == kept(kind) else directory / found / "network.safetensors"
    return slim.load(file, work.dense())


def source(settings: Settings, kind: str, number: int) -> str | None:
    """The phase whose network teaches in the pass ``number``, ``start`` (what the run began with), or the kept file.

    A weight of 0 listens to nobody.
    """
    distill = settings.distills.get(kind)
    if distill is None or distill.teacher is None or distill.weight == 0:
        return None
    if distill.teacher == "dense":
        return "baseline" if "baseline" in settings.phases else "start"
    if distill.teacher != "sparse":
        return kept(kind)
    if "sparse" in settings.phases:
        return f"sparse-{number + 1}" if number else "sparse"
    if number:  # pass after pass of cut and fine-tune
        return f"finetune-{number}" if number > 1 else "finetune"
    return settings.first or "start"
