"""The teacher of a phase: the network before the cut, the dense one, or one from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.seed import isolate_rng

from slim.channels import plan_of
from slim.errors import SlimError
from slim.lightning import Distillation
from slim.runs import weights
from slim.runs.components import Components
from slim.runs.failures import quiet
from slim.runs.schema import Config
from slim.runs.trainer import evaluation_trainer
from slim.runs.weights import NETWORK


def copy_name(kind: str) -> str:
    """Name of the run's own copy of a teacher that came from a file: a resumed run learns from the same one."""
    return f"{kind}-teacher.safetensors"


def from_files(parts: Components, start: Any = None) -> dict[str, Any]:
    """The teacher modules that the configuration names files for, by the kind of phase they teach.

    Args:
        parts: Builds modules.
        start: The module that the run begins with, if it begins with a checkpoint.

    Raises:
        SlimError: The file is missing, damaged, or of another architecture; or the dense teacher is not dense.
    """
    config = parts.config
    found: dict[str, Any] = {}
    for kind, distill in config.teachers.items():
        name = distill.teacher
        if name is None:
            continue
        if name == "dense" and _thin(parts, start):
            raise SlimError(
                f"A dense teacher needs a dense network. Got checkpoint={config.checkpoint}, which is thinner. "
                f"Set {kind}.distill.teacher=<file>."
            )
        if name in ("sparse", "dense"):
            continue
        try:
            found[kind] = weights.load(parts, Path(name))
        except SlimError as error:
            raise SlimError(
                f"A teacher must be a network of the configured model. Got {kind}.distill.teacher={name}: {error}"
            ) from error
    return found


def check_files(parts: Components) -> None:
    """Read the files that a run begins with or learns from, before anything is written.

    Raises:
        SlimError: A checkpoint or a teacher that is missing, damaged, or of another architecture; or one that is thin
            where the dense network is to be trained.
    """
    checkpoint = parts.config.checkpoint
    start = None if checkpoint is None else weights.load(parts, Path(checkpoint))
    if "baseline" in parts.config.phases and _thin(parts, start):
        raise SlimError(
            f"A baseline trains the dense network. Got checkpoint={checkpoint}, which is thinner. "
            "Leave baseline out of phases, or set another checkpoint."
        )
    if parts.config.schedule.name == "rewind" and _thin(parts, start):
        raise SlimError(
            "schedule=rewind needs a run that begins with a dense network. "
            f"Got checkpoint={checkpoint}, which is thinner. Set schedule=scratch, or another checkpoint."
        )
    from_files(parts, start)


def _thin(parts: Components, start: Any) -> bool:
    """Whether the run begins with a network that is thinner than the dense one."""
    return start is not None and plan_of(parts.network(start)) is not None


def check_distillation(parts: Components) -> None:
    """Let an untrained network learn from another one for a batch, where a module is not known to do so.

    Raises:
        SlimError: Its network gives no logits, or it does not leave its loss to Lightning.
    """
    taught = [kind for kind in parts.config.teachers if source(parts.config, kind, 0) is not None]
    if not taught or str(parts.config.module["_target_"]) in ("slim.tasks.Classification", "slim.tasks.Segmentation"):
        return
    try:
        with isolate_rng(), quiet():
            teacher = Distillation(parts.dense(), network=parts.config.network)
            options = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
            evaluation_trainer(parts, callbacks=[teacher], **options).fit(
                parts.module(taught[0]), datamodule=parts.data
            )
    except SlimError as error:
        named = parts.config.teachers[taught[0]].teacher
        raise SlimError(
            f"A teacher must say something of classes. Got {taught[0]}.distill.teacher={named}: "
            f"{str(error).partition(' Give loss=')[0]} Set {taught[0]}.distill.teacher=null."
        ) from error
    parts.data.trainer = None  # which holds the module


def keep(parts: Components, directory: Path) -> None:
    """Before anything trains: copy the teachers from files into the run directory, unless they are there."""
    named = [kind for kind in parts.config.teachers if source(parts.config, kind, 0) == copy_name(kind)]
    missing = [kind for kind in named if not (directory / copy_name(kind)).is_file()]
    found = from_files(parts) if missing else {}
    for kind in missing:
        weights.save(directory / copy_name(kind), found[kind], parts.network(found[kind]))


def load(parts: Components, directory: Path, kind: str, number: int) -> Any:
    """The teacher network of a phase of the pass ``number`` (0-based); ``None`` where there is none.

    Args:
        parts: Builds networks.
        directory: The run directory, with what earlier phases left in it.
        kind: Of the phase; a baseline has no teacher.
        number: Of the pass.
    """
    found = source(parts.config, kind, number)
    if found is None:
        return None
    file = directory / found if found == copy_name(kind) else directory / found / NETWORK
    return parts.network(weights.load(parts, file))


def source(config: Config, kind: str, number: int) -> str | None:
    """The phase whose network teaches in the pass ``number``, ``start`` (what the run began with), or the copied file.

    A teacher of weight 0 teaches nothing.
    """
    distill = config.teachers.get(kind)
    if distill is None or distill.teacher is None or distill.weight == 0:
        return None
    if distill.teacher == "dense":
        return "baseline" if "baseline" in config.phases else "start"
    if distill.teacher != "sparse":
        return copy_name(kind)
    if "sparse" in config.phases:
        return f"sparse-{number + 1}" if number else "sparse"
    if number:  # pass after pass of cut and fine-tune
        return f"finetune-{number}" if number > 1 else "finetune"
    return config.first or "start"
