"""Reading a configuration: every value by its own rule (:mod:`slim.runs.schema`), then the rules between sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from slim.errors import SlimError, nearest
from slim.runs.schema import BUDGETS, NO_FP16, PHASES, Config, Schedule


def read(config: Mapping[str, Any]) -> Config:
    """Check a composed configuration: every value by its own rule, then that the sections fit together.

    Raises:
        SlimError: One line that names everything wrong in it.

    >>> read({"seed": -1, "sede": 1})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    slim.errors.SlimError: data must be set. Got nothing. ...seed must be in [0, 2**32). Got seed=-1. ...
    """
    try:
        found = Config.model_validate(dict(config))
    except ValidationError as error:
        raise SlimError(" ".join(dict.fromkeys(_line(fault) for fault in error.errors()))) from None
    return _checked(found)


def plain(config: Config) -> dict[str, Any]:
    """The configuration as nested plain data, the way it goes into state.json."""
    return config.model_dump(mode="json")


# Rules between sections


def _checked(config: Config) -> Config:
    """Check that the sections fit together; returns the configuration, with ``finetune.lr_rewind`` resolved.

    Raises:
        SlimError: The first rule that does not hold.
    """
    if config.resume is not None:
        raise SlimError(
            f"resume goes on with one run, given on the command line. Got resume={config.resume!r}. "
            "Give resume=<run directory>, or leave it out."
        )
    config = _strategy(config)
    _check_phases(config)
    _check_teachers(config)
    config = _finetune(config)
    given = [name for name in BUDGETS if getattr(config.prune, name) is not None]
    if "prune" in config.phases and len(given) != 1:
        got = ", ".join(f"prune.{name}={getattr(config.prune, name)}" for name in given) or "none"
        raise SlimError(
            f"The cut needs exactly one budget. Got {got}. Set one and the others to null, e.g. prune.ratio=null."
        )
    _check_schedule(config)
    _check_granularity(config)
    if config.trainer.precision == "fp16" and config.trainer.accelerator == "cpu":
        raise SlimError(NO_FP16)
    return config


def _strategy(config: Config) -> Config:
    """``strategy=ddp`` is short for ``trainer.strategy=ddp``; strategies that shard parameters are refused.

    Raises:
        SlimError: A strategy under which no process holds a whole parameter, or an unknown one.
    """
    if config.strategy == "auto":
        return config
    if config.strategy != "ddp":
        sharded = "shards parameters, and a channel can only be cut from a whole one" if config.strategy in (
            "fsdp", "fsdp2", "deepspeed", "model_parallel"
        ) else "is unknown"  # fmt: skip
        raise SlimError(f"strategy must be auto or ddp. Got strategy={config.strategy}, which {sharded}. Set strategy.")
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"strategy": "ddp"})})


def _check_phases(config: Config) -> None:
    phases = config.phases
    if not phases:
        raise SlimError(f"phases must name at least one phase. Got phases=[]. Known: {', '.join(PHASES)}.")
    for phase in phases:
        if phase not in PHASES:
            raise SlimError(f"phases must be known. Got phases={phases} with {phase}. {nearest(phase, PHASES)}")
    if phases != sorted(set(phases), key=PHASES.index):
        order = ",".join(sorted(set(phases), key=PHASES.index))
        raise SlimError(f"phases must be in order, each once. Got phases={phases}. Set phases=[{order}].")
    if "export" in phases and config.trainer.processes > 1:
        raise SlimError(
            f"One process exports. Got phases={phases} with trainer.devices={config.trainer.devices}. "
            "Leave export out, then run phases=[export] with checkpoint=<the run directory> and trainer.devices=1."
        )
    if phases[0] in ("prune", "finetune", "export") and config.checkpoint is None and config.task == "train":
        raise SlimError(
            f"A run that begins with {phases[0]} needs a trained network. Got checkpoint=null. Set checkpoint=<file>."
        )


def _check_teachers(config: Config) -> None:
    phases = config.phases
    for kind, distill in config.teachers.items():
        teacher = distill.teacher
        if teacher == "dense" and "baseline" not in phases and config.checkpoint is None:
            raise SlimError(
                f"A dense teacher needs a dense network that was trained. Got {kind}.distill.teacher=dense with "
                f"phases={phases}, checkpoint=null. Set phases=[baseline,sparse,prune,finetune], or "
                f"{kind}.distill.teacher=<file>."
            )
        if teacher == "sparse" and kind == "sparse":
            raise SlimError(
                "teacher=sparse is the network before the cut, for the fine-tune. Got sparse.distill.teacher=sparse. "
                "Set sparse.distill.teacher=dense or <file>."
            )
        if teacher == "sparse" and "prune" not in phases:
            raise SlimError(
                f"teacher=sparse is the network before the cut. Got phases={phases}. "
                "Add prune, or set finetune.distill.teacher=<file>."
            )


def _finetune(config: Config) -> Config:
    """With ``lr_rewind`` the fine-tune lasts as long as what it replays.

    Raises:
        SlimError: There is no phase to take the learning rates from.
    """
    finetune, first = config.finetune, config.first
    if "finetune" not in config.phases or finetune.lr_rewind is None:
        return config
    if first is None:
        raise SlimError(
            f"lr_rewind replays the learning rates of a phase before the cut. Got phases={config.phases}. "
            "Add sparse, or set finetune.lr_rewind=null."
        )
    epochs = config.training(first).epochs
    if finetune.lr_rewind > epochs:
        raise SlimError(
            f"lr_rewind must be at most the epochs of the {first} phase, which has {epochs}. "
            f"Got lr_rewind={finetune.lr_rewind}. Lower finetune.lr_rewind."
        )
    return config.model_copy(update={"finetune": finetune.model_copy(update={"epochs": finetune.lr_rewind})})


def _check_schedule(config: Config) -> None:
    """The schedule fits the phases.

    Raises:
        SlimError: A phase that it needs is missing, or it cannot be combined with the budget or the penalty.
    """
    schedule, phases = config.schedule, config.phases
    _ = config.passes  # whose own rules speak first
    needs = {"soft": ("sparse", "prune"), "rewind": ("prune", "finetune"), "scratch": ("prune", "finetune")}
    for phase in needs.get(schedule.name, ("prune",) if schedule.name == "iterative" else ()):
        if phase not in phases:
            raise SlimError(
                f"schedule={schedule.name} needs the {phase} phase. Got phases={phases}. "
                "Set phases=[sparse,prune,finetune], or schedule=one_shot."
            )
    if schedule.name == "soft" and config.prune.latency is not None:
        raise SlimError(
            "schedule=soft selects again and again and needs a budget that is the same each time. "
            f"Got prune.latency={config.prune.latency}. Set prune.macs instead."
        )
    if schedule.name == "soft" and config.penalty.get("name") == "l0":
        raise SlimError(
            "schedule=soft shrinks scales, and penalty=l0 samples them anew at every step. Got both. "
            "Set penalty=l1, or schedule=one_shot."
        )
    _check_effect(schedule)
    if "sparse" in phases:
        _check_during_training(config)
    if schedule.name == "rewind":
        _check_rewind(config)


def _check_effect(schedule: Schedule) -> None:
    """Refuse options that another schedule has, or that say how several cuts grow where there is one."""
    growing = {"growth", "start"} if schedule.count > 1 else set()
    taken = {"soft": {"every"}, "rewind": {"rewind_epoch", *growing}}.get(schedule.name, growing)
    for key, field in Schedule.model_fields.items():
        value = getattr(schedule, key)
        if key not in {"name", "count", *taken} and value != field.default:
            raise SlimError(
                f"schedule={schedule.name} with count={schedule.count} has no use for {key}. "
                f"Got schedule.{key}={value}. Leave it out."
            )


def _check_during_training(config: Config) -> None:
    """What happens between epochs of sparse training has something to remove, and comes before its end."""
    sparse, law = config.sparse, config.penalty.get("name")
    reasons = dict.fromkeys(("l1", "group"), "brings no scale to exactly zero, so that nothing would go")
    reason = {**reasons, "l0": "cannot follow a rebuild during training"}.get(str(law))
    if sparse.slim_every and reason is not None:
        raise SlimError(
            f"penalty={law} {reason}. Got sparse.slim_every={sparse.slim_every}. "
            "Set sparse.slim_every=0, or penalty=target or prox."
        )
    every = config.schedule.every if config.schedule.name == "soft" else 0
    for key, epochs in (("sparse.slim_every", sparse.slim_every), ("schedule.every", every)):
        if epochs > sparse.epochs:
            raise SlimError(
                f"{key} must be at most the epochs of sparse training, {sparse.epochs}. Got {key}={epochs}. "
                "Lower it, or raise sparse.epochs."
            )


def _check_rewind(config: Config) -> None:
    if config.first is None:
        raise SlimError(
            f"schedule=rewind goes back into the training of the same run. Got phases={config.phases}. "
            "Set phases=[sparse,prune,finetune], or schedule=scratch."
        )
    epochs, epoch = config.training(config.first).epochs, config.passes[0].rewind_epoch
    if epoch > epochs:
        raise SlimError(
            f"rewind_epoch must be an epoch of the {config.first} phase, which has {epochs}. "
            f"Got rewind_epoch={epoch}. Lower schedule.rewind_epoch."
        )
    if config.sparse.slim_every and config.first == "sparse" and epoch > config.sparse.slim_every:
        raise SlimError(
            f"rewind_epoch must come before the first rebuild in place. Got rewind_epoch={epoch}, "
            f"slim_every={config.sparse.slim_every}. Lower schedule.rewind_epoch, or set sparse.slim_every=0."
        )


def _check_granularity(config: Config) -> None:
    """A branch that goes as a whole ends in a normalization whose channels stay: no law that ends at zero knows it."""
    granularity, strategy = config.prune.granularity, config.prune.strategy
    if granularity == "channel" or "prune" not in config.phases:
        return
    if strategy != "global":
        raise SlimError(
            f"Whole branches are ranked by score. Got prune.granularity={granularity} with prune.strategy={strategy}. "
            "Set prune.strategy=global."
        )
    if "sparse" in config.phases and config.penalty.get("name") == "target":
        raise SlimError(
            f"penalty=target brings single channels to zero. Got prune.granularity={granularity}. "
            "Set penalty=l1, or prune.granularity=channel."
        )


# One line per complaint of pydantic

_TYPES = {
    "int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "list": "a list",
    "dict": "a group of keys", "model": "a group of keys", "dataclass": "a group of keys",
}  # fmt: skip


def _line(fault: Any) -> str:
    """One complaint of pydantic in the form of our errors."""
    kind = str(fault["type"])
    # pydantic names the members of a union in the location, which no user has written.
    path = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "constrained-"))]
    key = ".".join(path)
    value = fault.get("input")
    got = f"Got {key}={_shown(value)}."
    if kind == "missing":
        return f"{key} must be set. Got nothing. Give {key}=<value>."
    if kind == "extra_forbidden":
        return f"A configuration key must be known. Got {key}. {nearest(path[-1], _keys(path[:-1]))}"
    if kind == "literal_error":
        options = [option.strip(" '") for option in str(fault["ctx"]["expected"]).replace(" or ", ",").split(",")]
        return f"{key} must be one of {', '.join(options)}. {got} {nearest(str(value), options)}"
    if kind == "value_error":
        text, _, advice = str(fault["ctx"]["error"]).partition(". ")
        name = path[-1]
        return f"{name} must be {text}. Got {name}={_shown(value)}. {(advice or 'Change {key}').format(key=key)}."
    expected = next((text for name, text in _TYPES.items() if kind.startswith(name)), "of another type")
    return f"{key} must be {expected}. {got} Set {key} to {expected}."


def _shown(value: Any) -> str:
    text = {None: "null", True: "true", False: "false"}.get(value) if not isinstance(value, dict | list) else None
    text = str(value) if text is None or value == 0 or (value == 1 and not isinstance(value, bool)) else text
    return text if len(text) <= 60 else f"{text[:60]}..."


def _keys(path: list[str]) -> list[str]:
    """The keys of the section at ``path``."""
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
