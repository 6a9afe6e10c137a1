"""A composed configuration, checked: every value by its own rule, then that the sections fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from slim.errors import SlimError, nearest
from slim.pipeline.schema import parse
from slim.pipeline.settings import BUDGETS, PHASES, Settings


def read(config: Mapping[str, Any]) -> Settings:
    """Check a composed configuration and turn it into settings.

    Raises:
        SlimError: One line that names everything wrong in it.
    """
    settings = parse(Settings, config)
    _check_phases(settings)
    _check_teachers(settings)
    settings = _check_finetune(settings)
    given = [name for name in BUDGETS if getattr(settings.prune, name) is not None]
    if "prune" in settings.phases and len(given) != 1:
        got = ", ".join(f"prune.{name}={getattr(settings.prune, name)}" for name in given) or "none"
        raise SlimError(
            f"The cut needs exactly one budget. Got {got}. Set one and the others to null, e.g. prune.ratio=null."
        )
    _check_schedule(settings)
    if settings.trainer.precision == "fp16" and settings.trainer.accelerator == "cpu":
        raise SlimError("precision must be fp32 or bf16 on a CPU. Got precision=fp16. Set trainer.precision=bf16.")
    return settings


def _check_phases(settings: Settings) -> None:
    phases = settings.phases
    if not phases:
        raise SlimError(f"phases must name at least one phase. Got phases=[]. Known: {', '.join(PHASES)}.")
    for phase in phases:
        if phase not in PHASES:
            raise SlimError(f"phases must be known. Got phases={list(phases)} with {phase}. {nearest(phase, PHASES)}")
    if list(phases) != sorted(set(phases), key=PHASES.index):
        order = ",".join(sorted(set(phases), key=PHASES.index))
        raise SlimError(f"phases must be in order, each once. Got phases={list(phases)}. Set phases=[{order}].")
    if phases[0] in ("prune", "finetune") and settings.checkpoint is None and settings.task == "train":
        raise SlimError(
            f"A run that begins with {phases[0]} needs a trained network. Got checkpoint=null. Set checkpoint=<file>."
        )


def _check_teachers(settings: Settings) -> None:
    phases = settings.phases
    for kind, distill in settings.distills.items():
        teacher = distill.teacher
        if teacher == "dense" and "baseline" not in phases and settings.checkpoint is None:
            raise SlimError(
                f"A dense teacher needs a dense network that was trained. Got {kind}.distill.teacher=dense with "
                f"phases={list(phases)}, checkpoint=null. Set phases=[baseline,sparse,prune,finetune], or "
                f"{kind}.distill.teacher=<file>."
            )
        if teacher == "sparse" and kind == "sparse":
            raise SlimError(
                "teacher=sparse is the network before the cut, for the fine-tune. Got sparse.distill.teacher=sparse. "
                "Set sparse.distill.teacher=dense or <file>."
            )
        if teacher == "sparse" and "prune" not in phases:
            raise SlimError(
                f"teacher=sparse is the network before the cut. Got phases={list(phases)}. "
                "Add prune, or set finetune.distill.teacher=<file>."
            )


def _check_finetune(settings: Settings) -> Settings:
    """The fine-tune's learning rates exist; with ``lr_rewind``, it lasts as long as what it replays.

    Raises:
        SlimError: There is no phase to take them from.
    """
    finetune, phases, first = settings.finetune, settings.phases, settings.first
    if "finetune" not in phases or finetune.lr_rewind is None:
        return settings
    if first is None:
        raise SlimError(
            f"lr_rewind replays the learning rates of a phase before the cut. Got phases={list(phases)}. "
            "Add sparse, or set finetune.lr_rewind=null."
        )
    epochs = getattr(settings, first).epochs
    if finetune.lr_rewind > epochs:
        raise SlimError(
            f"lr_rewind must be at most the epochs of the {first} phase, which has {epochs}. "
            f"Got lr_rewind={finetune.lr_rewind}. Lower finetune.lr_rewind."
        )
    return dataclasses.replace(settings, finetune=dataclasses.replace(finetune, epochs=finetune.lr_rewind))


def _check_schedule(settings: Settings) -> None:
    """The schedule fits the phases.

    Raises:
        SlimError: A phase that it needs is missing, or the epoch to rewind to does not exist.
    """
    schedule, phases = settings.schedule, settings.phases
    steps = settings.steps
    needs = {"soft": ("sparse", "prune"), "rewind": ("prune", "finetune"), "scratch": ("prune", "finetune")}
    for phase in needs.get(schedule.name, ("prune",) if schedule.name == "iterative" else ()):
        if phase not in phases:
            raise SlimError(
                f"schedule={schedule.name} needs the {phase} phase. Got phases={list(phases)}. "
                "Set phases=[sparse,prune,finetune], or schedule=one_shot."
            )
    if schedule.name == "soft" and settings.prune.latency is not None:
        raise SlimError(
            "schedule=soft selects again and again and needs a budget that does not vary with the machine's mood. "
            f"Got prune.latency={settings.prune.latency}. Set prune.macs instead."
        )
    if schedule.name == "soft" and settings.penalty.get("name") == "l0":
        raise SlimError(
            "schedule=soft shrinks scales, and penalty=l0 draws them anew at every step. Got both. "
            "Set penalty=l1, or schedule=one_shot."
        )
    if schedule.name != "rewind":
        return
    if settings.first is None:
        raise SlimError(
            f"schedule=rewind goes back into the training of the same run. Got phases={list(phases)}. "
            "Set phases=[sparse,prune,finetune], or schedule=scratch."
        )
    epochs, epoch = getattr(settings, settings.first).epochs, steps[0].rewind_epoch
    if epoch > epochs:
        raise SlimError(
            f"rewind_epoch must be an epoch of the {settings.first} phase, which has {epochs}. "
            f"Got rewind_epoch={epoch}. Lower schedule.rewind_epoch."
        )
    if settings.sparse.slim_every and settings.first == "sparse" and epoch > settings.sparse.slim_every:
        raise SlimError(
            f"rewind_epoch must come before the first rebuild in place. Got rewind_epoch={epoch}, "
            f"slim_every={settings.sparse.slim_every}. Lower schedule.rewind_epoch, or set sparse.slim_every=0."
        )
