"""The prune phase: rank, plan, rebuild, check, recover."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import slim
from slim import criteria, recovery
from slim.channels import ChannelGraph, Plan, plan_of
from slim.pipeline.settings import BUDGETS, Prune
from slim.pipeline.workspace import Workspace
from slim.selection import Selection, left_over, select_further

BoolArray = npt.NDArray[np.bool_]


def select(work: Workspace, graph: ChannelGraph, number: int) -> Selection:
    """The global ranking of the configuration, on a traced network, and what the pass ``number`` (0-based) removes.

    Budget, floors and caps are those of the dense network, also where ``graph`` is of a thinner one.
    """
    settings, network = work.settings, graph.model
    options = dict(settings.criterion)
    name = options.pop("name")
    if _wants_loader(name):
        options["loader"] = work.data.calibration_batches(int(options.get("batches", 8)))
    kind, _ = settings.budget
    wanted = {**limits(settings.prune), kind: settings.steps[number].amount}
    place = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    network.to(work.hardware.device)  # where gradients are fast and latency counts
    try:
        scores = slim.score(graph, name, **options)
        if plan_of(network) is None:
            return slim.select_groups(graph, scores, **wanted)
        dense = work.trace(work.dense().to(work.hardware.device))
        return select_further(dense, graph, scores, **wanted)
    finally:
        network.to(place)


def told(work: Workspace, graph: ChannelGraph, number: int) -> dict[str, float]:
    """What a law that is told a budget hears in the pass ``number``, as its option.

    Such a law takes the network it meets first for the dense one; so its budget is put in terms of that.
    """
    options = work.settings.penalty
    given = [(kind, options[kind]) for kind in BUDGETS if options.get(kind) is not None]
    if "prune" not in work.settings.phases or len(given) != 1 or not 0 <= given[0][1] <= 1:
        return {}
    ((kind, amount),) = given
    amount = work.settings.steps_to(kind, amount)[number].amount
    dense = graph if plan_of(graph.model) is None else work.trace(work.dense())
    return {kind: left_over(dense, graph, kind, amount)}


def limits(prune: Prune) -> dict[str, Any]:
    """The arguments of :func:`slim.select` that the configuration gives, but for the budget."""
    names = ("min_channels", "max_layer_ratio", "round_to", "ignore", "overrides", "strategy", "inexact")
    values = {name: getattr(prune, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def describe(work: Workspace, graph: ChannelGraph, selection: Selection, plan: Plan) -> dict[str, Any]:
    """What the report says about a cut; keys as in :mod:`slim.pipeline.record`.

    Args:
        work: Gives the dense network, which widths and MACs are compared with.
        graph: Of the network that is cut.
        selection: What goes.
        plan: The same, from the dense network.
    """
    gammas: dict[str, list[float]] = {}
    removed: dict[str, list[bool]] = {}
    for scale in graph.scales:
        if scale.weight is None:
            continue
        gamma = graph.model.get_parameter(scale.weight).detach().abs().cpu().double()
        gammas[scale.module] = gamma.tolist()
        removed[scale.module] = [bool(group >= 0 and selection.removed[group]) for group in scale.groups]
    cut = [value for name, values in gammas.items() for value, gone in zip(values, removed[name], strict=True) if gone]
    dense = work.trace(work.dense())
    before = dict(zip((layer.module for layer in dense.layers), dense.layer_macs(), strict=True))
    after = dict(zip((layer.module for layer in graph.layers), graph.layer_macs(selection.removed), strict=True))
    return {
        "requested": dict(selection.requested),
        "achieved": dict(selection.achieved),
        "plan_hash": plan.hash,
        "widths": {name: list(pair) for name, pair in plan.widths.items()},
        "layer_macs": {layer: [macs, after.get(layer, 0)] for layer, macs in before.items()},
        "gammas": gammas,
        "removed": removed,
        "cut": max(cut) if cut else None,
    }


def recover(work: Workspace, network: nn.Module, graph: ChannelGraph, removed: BoolArray, plan: Plan) -> nn.Module:
    """Rebuild what :func:`slim.recovery.absorb` prepared, and measure the BatchNorm statistics again."""
    options = work.settings.recovery
    source = recovery.absorb(network, removed, graph) if options.get("absorb") else network
    thin = slim.rebuild(source, plan)
    count = int(options.get("recalibrate_batches", 0))
    if count:
        thin.to(work.hardware.device)
        recovery.recalibrate(thin, work.data.calibration_batches(count), count, seed=work.settings.seed)
        thin.cpu()
    return thin


def row(work: Workspace, network: nn.Module, **figures: Any) -> dict[str, Any]:
    """Size of a network, for the report's table."""
    graph = work.trace(network)
    return {
        **figures,
        "channels": sum(len(scale.groups) for scale in graph.scales) or len(graph),
        "params": graph.params(),
        "macs": graph.macs(),
    }


def _wants_loader(name: str) -> bool:
    return "loader" in inspect.signature(criteria.find(name).rank).parameters
