"""The prune phase: rank, plan, rebuild, check, recover."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

import slim
from slim import criteria, recovery
from slim.channels import ChannelGraph, Plan
from slim.pipeline.settings import Prune
from slim.pipeline.workspace import Workspace
from slim.selection import Selection

BoolArray = npt.NDArray[np.bool_]


def select(work: Workspace, graph: ChannelGraph) -> Selection:
    """The global ranking of the configuration, on a traced network."""
    options = dict(work.settings.criterion)
    name = options.pop("name")
    if _wants_loader(name):
        options["loader"] = work.data.calibration_batches(int(options.get("batches", 8)))
    scores = slim.score(graph, name, **options)
    return slim.select_groups(graph, scores, **limits(work.settings.prune))


def limits(prune: Prune) -> dict[str, Any]:
    """The arguments of :func:`slim.select` that the configuration gives."""
    names = ("ratio", "macs", "params", "memory", "latency", "min_channels", "max_layer_ratio", "round_to")
    values = {name: getattr(prune, name) for name in (*names, "ignore", "overrides", "strategy", "inexact")}
    return {name: value for name, value in values.items() if value is not None}


def describe(graph: ChannelGraph, selection: Selection, plan: Plan) -> dict[str, Any]:
    """What the report says about a cut; keys as in :mod:`slim.pipeline.record`."""
    gammas: dict[str, list[float]] = {}
    removed: dict[str, list[bool]] = {}
    for scale in graph.scales:
        if scale.weight is None:
            continue
        gamma = graph.model.get_parameter(scale.weight).detach().abs().cpu().double()
        gammas[scale.module] = gamma.tolist()
        removed[scale.module] = [bool(group >= 0 and selection.removed[group]) for group in scale.groups]
    cut = [value for name, values in gammas.items() for value, gone in zip(values, removed[name], strict=True) if gone]
    before, after = graph.layer_macs(), graph.layer_macs(selection.removed)
    return {
        "requested": dict(selection.requested),
        "achieved": dict(selection.achieved),
        "plan_hash": plan.hash,
        "widths": {name: list(pair) for name, pair in plan.widths.items()},
        "layer_macs": {layer.module: [a, b] for layer, a, b in zip(graph.layers, before, after, strict=True)},
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
