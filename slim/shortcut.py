"""Trace, score, select, rebuild and recover in one call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from slim.channels import ChannelGraph, Plan, rebuild, trace
from slim.criteria import Rank, find, score
from slim.errors import SlimError, expect, nearest, shown
from slim.recovery import Step
from slim.recovery import recover as recovered
from slim.selection import Selection, select_groups
from slim.selection.reasons import as_lines, reasons


@dataclass(frozen=True)
class PruneReport:
    """Numbers of a pruning step.

    Attributes:
        criterion: Name of the criterion that ranked the channels.
        requested: The target, e.g. ``{"macs": 0.5}``.
        achieved: ``ratio`` removed; fractions of ``macs`` and ``params`` kept.
        macs: (dense, thin) multiply-accumulates of one forward on the example inputs.
        params: (dense, thin) parameters.
        input_shapes: Shapes of the example inputs the MACs are counted on, e.g. ``1x3x32x32``.
        depth: (dense, thin) convolutions and linear layers of one forward.
        widths: (dense, kept) channels per module.
        notes: One line for every part of the request that could not be met.
        stayed: The largest reasons for which channels must stay; see :func:`slim.selection.losses`.
    """

    criterion: str
    requested: dict[str, float]
    achieved: dict[str, float]
    macs: tuple[int, int]
    params: tuple[int, int]
    input_shapes: str
    depth: tuple[int, int]
    widths: dict[str, tuple[int, int]]
    notes: tuple[str, ...]
    stayed: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        requested = ", ".join(f"{k}={v:g}" for k, v in self.requested.items()) or "no target"
        lines = [
            f"criterion {self.criterion}, {requested}: {self.achieved['ratio']:.1%} of the channels removed",
            f"MACs   {self.macs[0]:>15,} -> {self.macs[1]:>15,}  ({self.achieved['macs']:.1%} kept;"
            f" FLOPs = 2 x MACs; input {self.input_shapes})",
            f"params {self.params[0]:>15,} -> {self.params[1]:>15,}  ({self.achieved['params']:.1%} kept)",
            f"depth  {self.depth[0]:>15,} -> {self.depth[1]:>15,}  (convolutions and linear layers)",
        ]
        lines += [
            f"  {name:<40} {dense:>6} -> {kept:>6}" for name, (dense, kept) in self.widths.items() if dense != kept
        ]
        return "\n".join([*lines, *self.notes, *as_lines(list(self.stayed))])


@dataclass(frozen=True)
class PruneResult:
    """A thinner network, the plan that made it, the numbers, and what became of each step of its recovery."""

    model: nn.Module
    plan: Plan
    report: PruneReport
    recovery: tuple[Step, ...] = ()


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    criterion: str | Rank = "gamma",
    criterion_options: Mapping[str, Any] | None = None,
    residual: str = "group",
    grouped: str = "balance",
    recover: Mapping[str, Any] | None = None,
    **options: Any,
) -> PruneResult:
    """A thinner copy of ``model``, which is not changed.

    Args:
        model: Any network.
        example_inputs: A tensor, a tuple, or a dict of keyword arguments.
        criterion: Name, function or import path; see :func:`slim.score`.
        criterion_options: Options of the criterion, like ``loader``, and ``normalize``.
        residual: How shared streams are treated; see :func:`slim.trace`.
        grouped: How grouped convolutions are treated; see :func:`slim.trace`.
        recover: Make the thin network right again, without training: the arguments of :func:`slim.recovery.recover`,
            like ``{"batches": loader, "least_squares": 20, "evaluate": accuracy}``. None: the bare cut.
        options: The target and constraints; see :func:`slim.selection.select_groups`.

    Raises:
        SlimError: As :func:`slim.trace`, :func:`slim.score` and :func:`slim.select` do.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> result = prune(net, torch.zeros(1, 3, 8, 8), ratio=0.5)
    >>> result.model[0]
    Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    >>> result.report.macs
    (8928, 4464)
    """
    known = list(inspect.signature(select_groups).parameters)[2:]
    for option in options:
        if option not in known:
            of_criterion = option in inspect.signature(find(criterion).rank).parameters
            hint = f"Pass criterion_options={{{option!r}: ...}}." if of_criterion else nearest(option, known)
            raise SlimError(f"Options must be those of slim.select. Got {shown(option, options[option])}. {hint}")
    if criterion_options is not None:
        expect("criterion_options", criterion_options, Mapping, "Pass such as {'loader': loader}.")
    if recover is not None:
        expect("recover", recover, Mapping, "Pass such as {'batches': loader}.")
    accepted = list(inspect.signature(recovered).parameters)[3:-1]
    for option in recover or {}:
        if option not in accepted:
            hint = nearest(option, accepted)
            raise SlimError(f"recover takes the arguments of slim.recovery.recover. Got recover.{option}. {hint}")
    graph = trace(model, example_inputs, residual=residual, grouped=grouped)
    scores = score(graph, criterion, **dict(criterion_options or {}))
    selection = select_groups(graph, scores, **options)
    plan = graph.plan(selection.removed)
    described = report(graph, selection, plan, scores.criterion)
    if recover is None:
        return PruneResult(rebuild(model, plan), plan, described)
    found = recovered(model, plan, graph, **recover)
    return PruneResult(found.network, plan, described, found.steps)


def report(graph: ChannelGraph, selection: Selection, plan: Plan, criterion: str) -> PruneReport:
    """The report of a selection in ``graph``."""
    return PruneReport(
        criterion=criterion,
        requested=selection.requested,
        achieved=selection.achieved,
        macs=(graph.macs(), graph.macs(selection.removed)),
        params=(graph.params(), graph.params(selection.removed)),
        input_shapes=graph.input_shapes,
        depth=(graph.depth(), graph.depth(selection.removed)),
        widths=dict(plan.widths),
        notes=selection.notes,
        stayed=tuple(reasons(graph)),
    )
