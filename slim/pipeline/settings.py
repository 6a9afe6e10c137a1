"""What a run can be told, as frozen dataclasses; conf/ holds the same keys with their defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from slim.pipeline.schema import one_of, rule
from slim.selection import SCHEDULES, Pass, passes

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
    *(f"sensitivity.{field}" for field in ("images", "shares", "max_drop", "memory_mb", "csv")),
)
"""Keys that may change when a run goes on: epochs to extend, devices, logging."""


def _positive(text: str = "above 0", **kwargs: Any) -> Any:
    return rule(text, lambda value: value > 0, "Set {key} above 0.", **kwargs)


def _at_least(low: int, **kwargs: Any) -> Any:
    return rule(f"{low} or more", lambda value: value >= low, f"Set {{key}} to {low} or more.", **kwargs)


def _kept() -> Any:
    return rule(
        "in (0, 1], the fraction kept, or an absolute number above 1",
        lambda value: value > 0,
        "Set {key} to what may remain.",
        default=None,
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
class Distill:
    """A teacher for a phase; Hinton et al. 2015, arXiv:1503.02531.

    Attributes:
        teacher: ``sparse`` (the network before the cut, for the fine-tune), ``dense`` (the baseline phase's, or what a
            run without one began with), a file or run directory with a network of the same model, or ``None``: nobody.
        temperature: Softens both networks' answers.
        weight: Of the teacher in the loss; the labels have the rest.
    """

    teacher: str | None = None
    temperature: float = _positive(default=4.0)
    weight: float = rule("in [0, 1]", lambda value: 0 <= value <= 1, "Set {key} to 0.5.", default=0.5)


@dataclass(frozen=True)
class Sparse(Training):
    """Training under the penalty.

    Attributes:
        shrink: When set, lam follows from the length of the run: the penalty can take at most this much off a gamma,
            sum(lr * lam / (1 - momentum)). The paper's CIFAR-10 runs come to 6 with lam = 1e-4 and 0.6 with 1e-5.
        slim_every: Rebuild in place every so many epochs, without the channels that are exactly zero; 0: never.
        distill: Whom it learns from, besides the labels: what leaves is replaced while the answers are still told.
    """

    shrink: float | None = _positive(default=None)
    slim_every: int = _at_least(0, default=0)
    distill: Distill = Distill()


@dataclass(frozen=True)
class Finetune(Training):
    """Training of the thin network.

    Attributes:
        lr_rewind: When set, the phase replays the learning rates of the last so many epochs before the cut, weights
            kept, in place of ``epochs`` and ``lr``; Renda et al. 2020, arXiv:2003.02389.
        distill: Whom it learns from, besides the labels.
    """

    lr_rewind: int | None = _at_least(1, default=None)
    distill: Distill = Distill()


@dataclass(frozen=True)
class Prune:
    """Ranking and cut. One budget, of the dense network: ``ratio`` is removed, the others are kept."""

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

    @property
    def limits(self) -> dict[str, Any]:
        """The arguments of :func:`slim.select`, but for the budget."""
        names = ("min_channels", "max_layer_ratio", "round_to", "ignore", "overrides", "strategy", "inexact")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Schedule:
    """In how many cuts the budget is reached, and from which weights the thin network goes on.

    See :mod:`slim.selection.schedules`.
    """

    name: str = one_of(*SCHEDULES, default="one_shot")
    count: int = _at_least(1, default=1)
    growth: str = one_of("linear", "cubic", default="linear")
    start: float | None = _positive(default=None)
    rewind_epoch: int = _at_least(0, default=0)
    every: int = _at_least(1, default=1)


@dataclass(frozen=True)
class Sensitivity:
    """The analysis of ``task=sensitivity``.

    Attributes:
        images: Held-out images, as one batch.
        shares: What each layer loses, alone.
        max_drop: Accuracy that a layer may cost, for the caps.
        memory_mb: For the outputs that are remembered; fewer images when they do not fit.
        csv: Where the table goes; beside the checkpoint, or into a run directory of its own.
    """

    images: int = _at_least(2, default=256)
    shares: tuple[float, ...] = rule(
        "in (0, 1), ascending",
        lambda shares: bool(shares) and all(0 < share < 1 for share in shares) and list(shares) == sorted(set(shares)),
        "Set {key}=[0.3,0.6,0.9].",
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
    max_drop: float = rule("in [0, 1]", lambda value: 0 <= value <= 1, "Set {key} to 0.02.", default=0.02)
    memory_mb: int = _at_least(1, default=1024)
    csv: str | None = None


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
    finetune: Finetune
    schedule: Schedule
    sensitivity: Sensitivity
    name: str = rule("a plain name", lambda text: bool(text) and not set(text) & set("/\\\0\n"), default="slim")
    task: str = one_of("train", "evaluate", "sensitivity", default="train")
    seed: int = rule("in [0, 2**32)", lambda value: 0 <= value < 2**32, "Set {key}=0.", default=0)
    phases: tuple[str, ...] = ("sparse", "prune", "finetune")
    checkpoint: str | None = None
    resume: str | None = None
    output: str = "outputs"
    latency_seconds: float = _positive(default=1.0)
    debug: bool = False

    @property
    def budget(self) -> tuple[str, float]:
        """Kind and amount of the cut's budget."""
        return next((kind, getattr(self.prune, kind)) for kind in BUDGETS if getattr(self.prune, kind) is not None)

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes of the schedule; one that cuts nothing where there is no prune phase."""
        return self.steps_to(*self.budget) if "prune" in self.phases else (Pass(0.0),)

    def steps_to(self, kind: str, amount: float) -> tuple[Pass, ...]:
        """The passes of the schedule, towards another budget."""
        return passes(**dataclasses.asdict(self.schedule), kind=kind, amount=amount)

    @property
    def distills(self) -> dict[str, Distill]:
        """Of the phases that may listen to a teacher."""
        both = {"sparse": self.sparse.distill, "finetune": self.finetune.distill}
        return {kind: distill for kind, distill in both.items() if kind in self.phases}

    @property
    def first(self) -> str | None:
        """The training phase whose network is cut first; None where a checkpoint is cut.

        A baseline before sparse training is a run of its own.
        """
        return next((phase for phase in ("sparse", "baseline") if phase in self.phases), None)


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as nested plain data, the way they go into state.json."""
    return dataclasses.asdict(settings)
