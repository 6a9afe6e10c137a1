"""The callbacks of a training phase: public ones of :mod:`slim.lightning`, and those that make it a phase of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from slim.lightning import ChannelPruning, Distillation, GammaDashboard, SoftPruning, SparseTraining
from slim.runs import teachers
from slim.runs.components import Components
from slim.runs.curves import Curves
from slim.runs.finite import Finite
from slim.runs.progress import Progress
from slim.runs.pruning import pruning, pruning_options
from slim.runs.restart import EARLY, EarlyWeights
from slim.runs.schema import BUDGETS, Sparse
from slim.runs.watch import Watched, epochs_before
from slim.selection import limits_due


class PhaseCallbacks:
    """The callbacks of one phase, in their order.

    Attributes:
        sparse: The penalty, in a sparse phase.
        slimming: Rebuilds in the middle of it.
        curves: The metrics of every epoch.
        all: Every callback but the one that writes checkpoints, which comes last.
    """

    def __init__(self, parts: Components, directory: Path, name: str, number: int, network: nn.Module) -> None:
        config, kind = parts.config, name.partition("-")[0]
        self.sparse, self.slimming = _sparse_callbacks(parts, kind, budget_of_law(parts, number))
        self.curves = Curves(_budget_line(parts, number) if self.sparse is not None else None)
        if self.sparse is not None:
            self.sparse.traced = parts.traced(network)  # which the other callbacks then share
            self.sparse.next_cut = pruning(parts, number) if "prune" in config.phases else None
        found: list[pl.Callback | None] = [
            Finite(kind),
            _distillation(parts, directory, kind, number),
            self.sparse,
            *_schedule_callbacks(parts, directory, name, number),
            self.slimming,
            GammaDashboard(network=config.network, example=parts.example, every_n_steps=config.trainer.log_every),
            self.curves,
            Progress(name, config.metric, config.trainer.progress, self.sparse),
            Watched(parts.watch, config.metric.name, epochs_before(config, name)) if parts.watch is not None else None,
        ]
        self.all = [callback for callback in found if callback is not None]

    def forecast_line(self, saved: Mapping[str, Any]) -> str | None:
        """What the law can do in the phase; of the network it began with, also when it goes on with a thinner one."""
        known = None if self.sparse is None or self.sparse.forecast is None else self.sparse.forecast.line
        line: str | None = saved.get("forecast") or known
        return line

    def unfinished(self, saved: Mapping[str, Any]) -> str | None:
        """A line where the law has not brought to zero yet what it was told to; as saved where the phase is over."""
        if self.sparse is None or not self.sparse.attached:
            line: str | None = saved.get("unfinished")
            return line
        if (missed := self.sparse.missed_steps()) is None:
            return None
        return (
            f"The phase ended after {missed[1]} of the {missed[0]} steps of its law: what will go is not at zero yet."
        )


def _budget_line(parts: Components, number: int) -> dict[str, float]:
    """The share that the pass's cut is asked for, to be drawn beside what it would come to now."""
    if "prune" not in parts.config.phases:
        return {}
    amount = parts.config.passes[number].amount
    return {f"sparsity/budget_{parts.config.budget[0]}": amount} if 0 <= amount <= 1 else {}


def _sparse_callbacks(
    parts: Components, kind: str, budget: dict[str, Any]
) -> tuple[SparseTraining | None, ChannelPruning | None]:
    """The penalty of a sparse phase, with the ``budget`` of a law that takes one, and rebuilds in between."""
    config = parts.config
    training = config.training(kind)
    if not isinstance(training, Sparse):
        return None, None
    place: dict[str, Any] = {"network": config.network, "example": parts.example, "trace": config.prune.tracing}
    options = {**parts.penalty, **budget}
    # A law that knows its target has no lam to scale, and that of random gates shrinks no scale.
    shrink = training.shrink if options.get("lam") and options["name"] != "l0" else None
    sparse = SparseTraining(options.pop("name"), shrink=shrink, steps=training.steps, **place, **options)
    if not training.slim_every:
        return sparse, None
    floor = config.prune.min_channels
    # Statistics follow by themselves while training goes on; the constants of removed channels would be lost.
    recover = {"absorb": True, "batches": 0}
    every = training.slim_every
    slimming = ChannelPruning(zeros=True, every=every, recover=recover, min_channels=floor, **place)
    slimming.rehearsed = True  # before the run began
    return sparse, slimming


def _distillation(parts: Components, directory: Path, kind: str, number: int) -> Distillation | None:
    teacher = teachers.load(parts, directory, kind, number)
    if teacher is None:
        return None
    options = parts.config.teachers[kind].model_dump(exclude={"teacher"})
    return Distillation(teacher, network=parts.config.network, **options)


def _schedule_callbacks(parts: Components, directory: Path, name: str, number: int) -> list[pl.Callback]:
    """What the schedule asks of a training phase; soft cuts come before surgery in place."""
    config = parts.config
    step = config.passes[number]
    found: list[pl.Callback] = []
    if step.soft_every and name.partition("-")[0] == "sparse":
        found.append(SoftPruning(every=step.soft_every, **pruning_options(parts, number)))
    if step.weights == "rewound" and step.rewind_epoch and name == config.first:
        found.append(EarlyWeights(directory / EARLY, step.rewind_epoch, config.network))
    return found


def budget_of_law(parts: Components, number: int) -> dict[str, Any]:
    """The options of a law that takes a budget (``target``), for the pass ``number``, 0-based: budget due, and limits.

    Both are of the dense network; where the phase begins with a thin one :class:`SparseTraining` relates them to it.
    """
    config, penalty = parts.config, parts.penalty
    given = [(kind, penalty[kind]) for kind in BUDGETS if penalty.get(kind) is not None]
    if "prune" not in config.phases or len(given) != 1 or not 0 <= given[0][1] <= 1:
        return {}
    ((kind, whole),) = given
    amount = config.passes_to(kind, whole)[number].amount
    return {kind: amount, "select": limits_due(penalty.get("select") or {}, kind, amount, whole)}
