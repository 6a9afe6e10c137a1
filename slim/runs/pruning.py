"""The prune phase: rank, plan, rebuild, check, recover."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import slim
from slim import criteria, recovery
from slim.channels import ChannelGraph, Plan, plan_of
from slim.criteria import Scores
from slim.pipeline.settings import BUDGETS
from slim.selection import Selection, remaining_budget, select_next_cut

if TYPE_CHECKING:
    from slim.pipeline.workspace import Workspace

BoolArray = npt.NDArray[np.bool_]


def select(work: Workspace, graph: ChannelGraph, number: int) -> Selection:
    """The global ranking of the configuration, on a traced network, and what the pass ``number`` (0-based) removes.

    Budget, floors and caps are those of the dense network, also where ``graph`` is of a thinner one.
    """
    settings = work.settings
    wanted = {**settings.prune.limits, settings.budget[0]: settings.steps[number].amount}
    with _on_device(work, graph.model):
        scores = score(work, graph)
        if plan_of(graph.model) is None:
            return slim.select_groups(graph, scores, **wanted)
        dense = work.trace(work.dense().to(work.hardware.device))
        return select_next_cut(dense, graph, scores, **wanted)


def check(work: Workspace, graph: ChannelGraph) -> None:
    """Rank the untrained network, with two images where data is needed, and select: better now than after hours.

    Raises:
        SlimError: An option, a pattern or a budget that cannot be met by whatever training comes to.
    """

    def few(count: int) -> list[Any]:
        return [(x[:2], y[:2]) for x, y in itertools.islice(work.validation(), 1)]

    kind, amount = work.settings.budget
    with _on_device(work, graph.model):
        slim.select_groups(graph, score(work, graph, few), **{**work.settings.prune.limits, kind: amount})


def score(work: Workspace, graph: ChannelGraph, batches: Callable[[int], Any] | None = None) -> Scores:
    """The criterion of the configuration on a network; ``batches`` gives so many, of training images by default."""
    options = dict(work.settings.criterion)
    name = options.pop("name")
    if "loader" in inspect.signature(criteria.find(name).rank).parameters:
        count = options.get("batches", 8)
        options["loader"] = (batches or work.data.calibration_batches)(count if isinstance(count, int) else 1)
    return slim.score(graph, name, **options)


@contextmanager
def _on_device(work: Workspace, network: nn.Module) -> Iterator[None]:
    """On the run's device inside: where gradients are fast, and where latency counts."""
    place = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    network.to(work.hardware.device)
    try:
        yield
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
    return {kind: remaining_budget(dense, graph, kind, amount)}


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
    dense = graph if plan_of(graph.model) is None else work.trace(work.dense())
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


def recover(work: Workspace, network: nn.Module, removed: BoolArray, plan: Plan) -> nn.Module:
    """Rebuild what :func:`slim.recovery.absorb` prepared, and measure the BatchNorm statistics again.

    ``network`` is changed: what its removed channels said moves into the others.
    """
    options = work.settings.recovery
    if options.get("absorb"):
        recovery.absorb(network, removed, work.trace(network), in_place=True)
    thin = slim.rebuild(network, plan)
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
