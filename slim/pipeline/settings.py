"""What a run can be told, as frozen dataclasses; conf/ holds the same keys with their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slim.errors import SlimError, nearest
from slim.pipeline.schema import one_of, parse, rule

PHASES = ("baseline", "sparse", "prune", "finetune")
BUDGETS = ("ratio", "macs", "params", "memory", "latency")

SAFE_ON_RESUME = (
    "baseline.epochs",
    "sparse.epochs",
    "finetune.epochs",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.log_every",
    "trainer.progress",
    "trainer.checkpoint_every",
    "debug",
    "resume",
    "output",
    "latency_seconds",
)
"""Keys that may change when a run goes on: epochs to extend, devices, logging."""


def _positive(text: str = "above 0", **kwargs: Any) -> Any:
    return rule(text, lambda value: value > 0, "Set {key} above 0.", **kwargs)


def _at_least(low: int, **kwargs: Any) -> Any:
    return rule(f"{low} or more", lambda value: value >= low, f"Set {{key}} to {low} or more.", **kwargs)


def _kept() -> Any:
    return rule(
        "in (0, 1], the fraction kept", lambda value: 0 < value <= 1, "Set {key} to what may remain.", default=None
    )


@dataclass(frozen=True)
class Scheduler:
    """Learning rate over a phase: linear warm-up, then steps down, a cosine to zero, or constant."""

    name: str = one_of("step", "cosine", "constant", default="step")
    milestones: tuple[float, ...] = rule(
        "fractions of the phase in (0, 1), ascending",
        lambda marks: all(0 < mark < 1 for mark in marks) and list(marks) == sorted(marks),
        "Set {key}=[0.5,0.75].",
        default=(0.5, 0.75),
    )
    factor: float = rule("in (0, 1]", lambda value: 0 < value <= 1, "Set {key} to 0.1.", default=0.1)
    warmup: float = rule(
        "in [0, 1), a fraction of the phase", lambda value: 0 <= value < 1, "Set {key} to 0.", default=0.0
    )


@dataclass(frozen=True)
class Training:
    """One training phase. ``lr`` replaces ``optimizer.lr``."""

    epochs: int = _at_least(1)
    lr: float | None = _positive(default=None)
    label_smoothing: float = rule("in [0, 1)", lambda value: 0 <= value < 1, "Set {key} to 0.", default=0.0)


@dataclass(frozen=True)
class Sparse(Training):
    """Training under the penalty.

    Attributes:
        shrink: When set, lam follows from the length of the run: the penalty can take at most this much off a gamma,
            sum(lr * lam / (1 - momentum)). The paper's CIFAR-10 runs come to 6 with lam = 1e-4 and 0.6 with 1e-5.
        slim_every: Rebuild in place every so many epochs, without the channels that are exactly zero; 0: never.
    """

    shrink: float | None = _positive(default=None)
    slim_every: int = _at_least(0, default=0)


@dataclass(frozen=True)
class Prune:
    """Ranking and cut. One budget: ``ratio`` is removed, the others are fractions kept."""

    ratio: float | None = rule("in [0, 1)", lambda value: 0 <= value < 1, "Set {key} below 1.", default=None)
    macs: float | None = _kept()
    params: float | None = _kept()
    memory: float | None = _kept()
    latency: float | None = _kept()
    min_channels: int = _at_least(1, default=1)
    max_layer_ratio: float = rule("in (0, 1]", lambda value: 0 < value <= 1, "Set {key} to at most 1.", default=1.0)
    round_to: int = _at_least(1, default=1)
    ignore: tuple[str, ...] = ()
    overrides: dict[str, Any] | None = None
    strategy: str = one_of("global", "marginal", "layer", default="global")
    inexact: bool = False
    residual: str = one_of("group", "select", "keep", default="group")
    grouped: str = one_of("balance", "whole", default="balance")


@dataclass(frozen=True)
class Hardware:
    """Where and how training runs. ``auto`` chooses what this machine is good at and says so."""

    accelerator: str = one_of("auto", "cpu", "gpu", default="auto")
    devices: int = _at_least(1, default=1)
    precision: str = one_of("auto", "fp32", "bf16", "fp16", default="auto")
    channels_last: bool | None = None
    compile: bool = False
    accumulate: int = _at_least(1, default=1)
    clip: float | None = _positive(default=None)
    deterministic: bool = True
    threads: int | None = _at_least(1, default=None)
    log_every: int = _at_least(1, default=10)
    checkpoint_every: int | None = _at_least(1, default=None)
    limit_batches: int | None = _at_least(1, default=None)
    progress: str = one_of("auto", "bar", "lines", "none", default="auto")


@dataclass(frozen=True)
class Settings:
    """Everything a run is told."""

    data: dict[str, Any]
    model: dict[str, Any]
    criterion: dict[str, Any]
    penalty: dict[str, Any]
    recovery: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: Scheduler
    trainer: Hardware
    baseline: Training
    sparse: Sparse
    prune: Prune
    finetune: Training
    name: str = rule("a plain name", lambda text: bool(text) and not set(text) & set("/\\\0\n"), default="slim")
    task: str = one_of("train", "evaluate", "sensitivity", default="train")
    seed: int = rule("in [0, 2**32)", lambda value: 0 <= value < 2**32, "Set {key}=0.", default=0)
    phases: tuple[str, ...] = ("sparse", "prune", "finetune")
    passes: int = _at_least(1, default=1)
    checkpoint: str | None = None
    resume: str | None = None
    output: str = "outputs"
    latency_seconds: float = _positive(default=1.0)
    debug: bool = False


def read(config: Mapping[str, Any]) -> Settings:
    """Check a composed configuration and turn it into settings.

    Raises:
        SlimError: One line that names everything wrong in it.
    """
    settings = parse(Settings, config)
    _check_phases(settings)
    given = [name for name in BUDGETS if getattr(settings.prune, name) is not None]
    if "prune" in settings.phases and len(given) != 1:
        got = ", ".join(f"prune.{name}={getattr(settings.prune, name)}" for name in given) or "none"
        raise SlimError(
            f"The cut needs exactly one budget. Got {got}. Set one and the others to null, e.g. prune.ratio=null."
        )
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
    if settings.passes > 1 and "prune" not in phases:
        raise SlimError(f"passes above 1 need the prune phase. Got passes={settings.passes}. Set passes=1.")


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as nested plain data, the way they go into state.json."""
    return dataclasses.asdict(settings)
