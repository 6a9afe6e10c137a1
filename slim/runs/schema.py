"""The configuration of a run: one pydantic model per section of conf/, each value with its own rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

if TYPE_CHECKING:
    from slim.selection import Pass

PHASES = ("baseline", "sparse", "prune", "finetune", "export")
BUDGETS = ("ratio", "macs", "params", "memory", "latency")
NO_FP16 = "precision must be fp32 or bf16 on a CPU. Got precision=fp16. Set trainer.precision=bf16."

SAFE_ON_RESUME = (
    "baseline.epochs",
    "sparse.epochs",
    "finetune.epochs",
    "data.dir",
    "data.num_workers",
    "data.memory_budget_gb",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every",
    "trainer.progress",
    "trainer.checkpoint_every",
    "strategy",
    "debug",
    "resume",
    "output",
    "logger",
    "latency_seconds",
    "figures",
    "export",
    *(f"sensitivity.{field}" for field in ("images", "shares", "max_drop", "memory_mb", "csv")),
)
"""Keys that may change when a run goes on: epochs to extend a phase that is not done, where the images lie (that they
are the same is checked) and how they are read, devices, logging, and how files are exported, until they are."""


def _rule(text: str, holds: Any) -> AfterValidator:
    """A validator whose message completes "<key> must be ..."."""

    def check(value: Any) -> Any:
        if value is not None and not holds(value):
            raise ValueError(text)
        return value

    return AfterValidator(check)


def _multiple(value: Any) -> Any:
    """Before pydantic looks at the members of the union one by one, and complains of each."""
    if value != "auto" and (type(value) is not int or value < 1):
        raise ValueError("1 or more, or auto. Set {key} to 8 or to auto")
    return value


def _is_table(path: str) -> bool:
    return path != "" and not path.lower().endswith(".png")


def _layer_name(value: Any) -> Any:
    """A name such as ``0``, which the command line reads as a number; ``0.10`` would come as 0.1 and is refused."""
    if isinstance(value, bool | float):
        raise ValueError(f"names of layers, not the number {value}. Write \\[0\\].10 for 0.10 in {{key}}")
    return str(value) if isinstance(value, int) else value


def _layers(value: Any) -> Any:
    """The names in a list, or those that are keys of a mapping; see :func:`_layer_name`."""
    if isinstance(value, Mapping):
        return {_layer_name(name): rule for name, rule in value.items()}
    return [_layer_name(name) for name in value] if isinstance(value, list) else value


def _ascending_fractions(values: list[float]) -> bool:
    return bool(values) and all(0 < value < 1 for value in values) and values == sorted(set(values))


Positive = Annotated[float, _rule("above 0. Set {key} above 0", lambda value: 0 < value < math.inf)]
Fraction = Annotated[float, _rule("in [0, 1]. Set {key} to 0.5", lambda value: 0 <= value <= 1)]
BelowOne = Annotated[float, _rule("in [0, 1). Set {key} below 1", lambda value: 0 <= value < 1)]
Kept = Annotated[
    float, _rule("in (0, 1], the fraction kept, or an absolute number above 1", lambda value: 0 < value < math.inf)
]
AtLeastOne = Annotated[int, _rule("1 or more. Set {key} to 1 or more", lambda value: value >= 1)]
AtLeastZero = Annotated[int, _rule("0 or more. Set {key} to 0 or more", lambda value: value >= 0)]
Multiple = Annotated[int | Literal["auto"], BeforeValidator(_multiple)]
Shares = Annotated[list[float], _rule("in (0, 1), ascending", _ascending_fractions)]
Name = Annotated[
    str, _rule("a plain name", lambda text: text not in ("", ".", "..") and not set(text) & set("/\\\0\n"))
]
Seed = Annotated[int, _rule("in [0, 2**32)", lambda value: 0 <= value < 2**32)]


class Section(BaseModel):
    """Types are taken as they are (no text where a number belongs), and unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Metric(Section):
    """What networks are compared by.

    Attributes:
        name: As the module logs it behind ``val/`` and ``test/`` (or ``val_``, ``test_``).
        mode: Whether more or less of it is better.
        percent: Whether reports show it as a percentage.
    """

    name: Annotated[str, _rule("the name of a metric", bool)] = "accuracy"
    mode: Literal["max", "min"] = "max"
    percent: bool = True

    def better(self, value: float, other: float) -> bool:
        """Whether ``value`` beats ``other``."""
        return value > other if self.mode == "max" else value < other

    def shown(self, value: float) -> str:
        """As reports show it.

        >>> Metric().shown(0.98765), Metric(name="mae", mode="min", percent=False).shown(0.98765)
        ('98.77 %', '0.9877')
        """
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"


class Teacher(Section):
    """A teacher for a training phase; Hinton et al. 2015, arXiv:1503.02531.

    Attributes:
        teacher: ``sparse`` (the network before the cut, for the fine-tune), ``dense`` (the baseline phase's, or what a
            run without one began with), a file or run directory with a network of the same model, or ``None``.
        temperature: Softens both networks' outputs.
        weight: Of the teacher in the loss; the task's own loss has the rest.
    """

    teacher: str | None = None
    temperature: Positive = 4.0
    weight: Fraction = 0.5


class Training(Section):
    """One training phase. ``lr`` replaces ``optimizer.lr``; ``label_smoothing`` is for modules that take it."""

    epochs: AtLeastOne
    lr: Positive | None = None
    label_smoothing: BelowOne = 0.0


class Sparse(Training):
    """Training under the penalty.

    Attributes:
        shrink: When set, lam follows from the length of the run: the penalty can take at most this much off a gamma,
            sum(lr * lam / (1 - momentum)). The paper's CIFAR-10 runs come to 6 with lam = 1e-4 and 0.6 with 1e-5.
        slim_every: Rebuild in place every so many epochs, without the channels that are exactly zero; 0: never.
        steps: Optimizer steps of the phase that the penalty plans with, for a module that steps by itself (manual
            optimization) and otherwise than once for each batch.
        distill: The teacher, if there is one.
    """

    shrink: Positive | None = None
    slim_every: AtLeastZero = 0
    steps: AtLeastOne | None = None
    distill: Teacher = Teacher()


class Finetune(Training):
    """Training of the thin network.

    Attributes:
        lr_rewind: When set, the phase replays the learning rates of the last so many epochs before the cut, weights
            kept, in place of ``epochs`` and ``lr``; Renda et al. 2020, arXiv:2003.02389.
        distill: The teacher, if there is one.
    """

    lr_rewind: AtLeastOne | None = None
    distill: Teacher = Teacher()


class Prune(Section):
    """Ranking and cut. One budget, of the dense network: ``ratio`` is removed, the others are kept."""

    ratio: BelowOne | None = None
    macs: Kept | None = None
    params: Kept | None = None
    memory: Kept | None = None
    latency: Kept | None = None
    min_channels: AtLeastOne = 1
    max_layer_ratio: Annotated[float, _rule("in (0, 1]. Set {key} to at most 1", lambda value: 0 < value <= 1)] = 1.0
    round_to: Multiple = 1
    ignore: Annotated[list[str], BeforeValidator(_layers)] = []
    overrides: Annotated[dict[str, Any] | None, BeforeValidator(_layers)] = None
    strategy: Literal["global", "marginal", "layer"] = "global"
    granularity: Literal["channel", "layer", "both"] = "channel"
    inexact: bool = False
    residual: Literal["group", "select", "keep"] = "group"
    grouped: Literal["balance", "whole"] = "balance"

    @property
    def limits(self) -> dict[str, Any]:
        """The arguments of :func:`slim.select`, but for the budget."""
        names = ("min_channels", "max_layer_ratio", "round_to", "ignore", "overrides")
        return {name: getattr(self, name) for name in (*names, "strategy", "granularity", "inexact")}

    @property
    def tracing(self) -> dict[str, Any]:
        """The arguments of :func:`slim.trace`, but for network and example."""
        return {"residual": self.residual, "grouped": self.grouped}


class Recovery(Section):
    """What makes a cut network right without training. See :mod:`slim.recovery.recover`.

    Attributes:
        absorb: Constants of the removed channels move into the layers that read them.
        least_squares_batches: Training batches to fit the weights of those layers on; 0: the weights stay.
        recalibrate_batches: Training batches for fresh BatchNorm statistics; 0: keep the old ones.
    """

    absorb: bool = True
    least_squares_batches: AtLeastZero = 0
    recalibrate_batches: AtLeastZero = 100


class Export(Section):
    """The export phase: what the network is written as, and how near the files must be. See :mod:`slim.deploy`.

    Attributes:
        formats: onnx, int8 (ONNX), pt2, pt2_int8 (torchao), openvino, openvino_int8.
        opset: Of the ONNX operators; ``None``: the newest that the exporter writes.
        images: Held-out images that files are compared with the network on.
        calibration: How the range of an activation follows from calibration images: minmax, entropy, percentile.
        calibration_images: Training images that ranges are found on.
        reduce_range: Weights of 7 bits; ``None``: where this processor lacks VNNI.
        qat: Quantization-aware fine-tuning: never, always, or auto: where int8 loses more than half a point.
        qat_steps: Training batches of that.
        qat_lr: Its first learning rate, of Adam.
        max_difference: Of a float file, as a share of the largest output.
        max_loss: How much of the metric a quantized file may lose: points of a percentage in [0, 1], else the share.
    """

    formats: list[str] = ["onnx", "int8", "pt2"]
    opset: AtLeastOne | None = None
    images: AtLeastOne = 1000
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    calibration_images: AtLeastOne = 512
    reduce_range: bool | None = None
    qat: Literal["never", "auto", "always"] = "never"
    qat_steps: AtLeastOne = 200
    qat_lr: Positive = 1e-4
    max_difference: Positive = 1e-3
    max_loss: Positive = 0.02


class Schedule(Section):
    """In how many cuts the budget is reached, and from which weights the thin network goes on.

    See :mod:`slim.selection.schedules`.
    """

    name: Literal["one_shot", "iterative", "soft", "rewind", "scratch"] = "one_shot"
    count: AtLeastOne = 1
    growth: Literal["linear", "cubic"] = "linear"
    start: Positive | None = None
    rewind_epoch: AtLeastZero = 0
    every: AtLeastOne = 1


class Sensitivity(Section):
    """The analysis of ``task=sensitivity``.

    Attributes:
        images: Held-out images, as one batch.
        shares: What each layer loses, alone.
        max_drop: Accuracy that a layer may cost, for the caps.
        memory_mb: For the outputs that are remembered; fewer images when they do not fit.
        csv: Where the table goes; ``None``: beside the checkpoint, or into a run directory of its own.
    """

    images: Annotated[int, _rule("2 or more", lambda value: value >= 2)] = 256
    shares: Shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    max_drop: Fraction = 0.02
    memory_mb: AtLeastOne = 1024
    csv: Annotated[str | None, _rule("the path of a table; its figure is the .png beside it", _is_table)] = None


class Hardware(Section):
    """Where and how training runs; ``auto`` chooses what this machine is good at and says so.

    ``options`` are further arguments of Lightning's Trainer.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: AtLeastOne = 1
    num_nodes: AtLeastOne = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool | None = None
    compile: bool = False
    accumulate: AtLeastOne = 1
    clip: Positive | None = None
    deterministic: bool = True
    threads: AtLeastOne | None = None
    log_every: AtLeastOne = 10
    checkpoint_every: AtLeastOne | None = None
    limit_batches: AtLeastOne | None = None
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    options: dict[str, Any] = {}

    @property
    def limit_train_batches(self) -> int | float | None:
        """Of a training epoch, as Lightning takes it."""
        limit: int | float | None = self.options.get("limit_train_batches", self.limit_batches)
        return limit

    @property
    def processes(self) -> int:
        """Of one training phase, over all nodes."""
        return self.devices * self.num_nodes


class Config(Section):
    """The whole configuration."""

    data: dict[str, Any]
    model: dict[str, Any]
    module: dict[str, Any]
    metric: Metric = Metric()
    criterion: dict[str, Any]
    penalty: dict[str, Any]
    recovery: Recovery
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    trainer: Hardware
    logger: dict[str, dict[str, Any]] = {"tensorboard": {}}
    baseline: Training
    sparse: Sparse
    prune: Prune
    finetune: Finetune
    schedule: Schedule
    export: Export = Export()
    sensitivity: Sensitivity
    network: str | None = None
    name: Name = "slim"
    task: Literal["train", "evaluate", "sensitivity"] = "train"
    seed: Seed = 0
    phases: list[str] = ["sparse", "prune", "finetune"]
    checkpoint: str | None = None
    resume: str | None = None
    output: Annotated[str, _rule("a folder. Set {key} to outputs", bool)] = "outputs"
    strategy: str = "auto"
    latency_seconds: Positive = 1.0
    figures: bool = True
    debug: bool = False

    @property
    def budget(self) -> tuple[str, float]:
        """Kind and amount of the cut's budget."""
        return next((kind, getattr(self.prune, kind)) for kind in BUDGETS if getattr(self.prune, kind) is not None)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes of the schedule; one that cuts nothing where there is no prune phase."""
        from slim.selection import Pass

        return self.passes_to(*self.budget) if "prune" in self.phases else (Pass(0.0),)

    def passes_to(self, kind: str, amount: float) -> tuple[Pass, ...]:
        """The passes of the schedule, towards another budget."""
        from slim.selection import passes  # and torch with it: a wrong value is told before

        return passes(**self.schedule.model_dump(), kind=kind, amount=amount)

    @property
    def teachers(self) -> dict[str, Teacher]:
        """Of the phases of this run that may have one."""
        both = {"sparse": self.sparse.distill, "finetune": self.finetune.distill}
        return {kind: teacher for kind, teacher in both.items() if kind in self.phases}

    @property
    def first(self) -> str | None:
        """The training phase whose network is cut first; None where a checkpoint is cut.

        A baseline before sparse training is a run of its own.
        """
        return next((phase for phase in ("sparse", "baseline") if phase in self.phases), None)

    def training(self, kind: str) -> Training:
        """The section of a training phase."""
        found: Training = getattr(self, kind)
        return found
