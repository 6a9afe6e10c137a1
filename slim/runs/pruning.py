"""The prune phase: one cut by :class:`slim.lightning.ChannelPruning`, and the metric before and after every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import slim
from slim import criteria
from slim.channels import ChannelGraph, Plan, plan_of
from slim.criteria import Scores
from slim.lightning import ChannelPruning
from slim.lightning.calibration import Calibration
from slim.lightning.own_calls import check_own_calls, own_calls
from slim.recovery import Step
from slim.runs import weights
from slim.runs.components import Components
from slim.runs.evaluation import bottleneck, evaluate, first_batches, validation_batches
from slim.runs.restart import restarted
from slim.runs.schema import Config
from slim.selection import Selection, limits_due
from slim.selection.kept import why_kept
from slim.selection.reasons import reasons
from slim.tasks import Segmentation
from slim.tasks.segmentation import IGNORE_INDEX


@dataclass
class Cut:
    """What a prune phase leaves.

    Attributes:
        module: The thin module, recovered or restarted.
        plan: The cut, from the network before this phase.
        validation: Row of the report (sparse, masked, rebuilt, recovered or restarted) -> metric on held-out data.
        weights: What the thin network goes on from: trained, rewound or fresh.
        difference: Largest relative difference of outputs between the masked and the rebuilt network.
        figures: Plain data for the report; keys as in :mod:`slim.runs.record`.
        notes: One line each, for the report.
    """

    module: pl.LightningModule
    plan: Plan
    validation: dict[str, float]
    weights: str
    difference: float
    figures: dict[str, Any]
    notes: list[str]

    @property
    def row(self) -> str:
        """The row of what the phase hands on."""
        return list(self.validation)[-1]


def cut_network(parts: Components, directory: Path, before: Path | None, start: Path | None, number: int) -> Cut:
    """Rank, plan, rebuild, check, recover; never more than a dense and a thin network at a time.

    Args:
        parts: Of the run.
        directory: The run directory.
        before: Weights before the cut; ``None``: the untrained ones.
        start: Weights that the run began with; likewise.
        number: Of the pass, 0-based.

    Raises:
        RunFailed: The rebuilt network does not compute what the masked one does.
    """

    def load() -> pl.LightningModule:
        return parts.module() if before is None else weights.load(parts, before)

    step = parts.config.passes[number]
    module = load().to(parts.hardware.device)
    validation = {"sparse": evaluate(parts, module, "val")}
    graph = parts.trace(parts.network(module))
    described = _gammas(graph)
    module.to(parts.hardware.device)  # where gradients are fast, and where latency counts
    callback = pruning(parts, number, recover=step.weights == "trained")
    callback.traced = parts.traced(parts.network(module))
    stayed = reasons(graph)  # while the graph is of the network as it is
    done = callback.cut(
        module,
        graph=graph,
        batches=lambda: calibration_batches(parts),
        evaluate=_evaluation(parts, module) if step.weights == "trained" else None,
    )
    module.cpu()
    plan = plan_of(parts.network(module)) or done.plan
    steps = [_in_units_of_the_metric(parts, each) for each in done.recovery]
    notes = [*done.selection.notes, *(f"recovery: {line}" for line in steps)]
    if step.weights == "trained":
        validation["recovered"] = evaluate(parts, module, "val")
    else:
        module, line = restarted(parts, directory, start, plan_of(parts.network(module)), number)
        validation["restarted"] = evaluate(parts, module, "val")
        notes.append(line)
    unrecovered = _evaluate_unrecovered(parts, load(), done.plan)
    figures = _describe(parts, graph, done.selection, plan) | _removed(graph, described, done.selection)
    figures["stayed"] = stayed
    figures["why_kept"] = why_kept(graph, done.selection)
    figures["recovery"] = [dataclasses.asdict(each) for each in steps]
    notes += [*_living(parts.config, figures["cut"]), *filter(None, [bottleneck(figures["widths"])])]
    before_cut, after_cut = ({name: value} for name, value in validation.items())
    ladder = before_cut | unrecovered | after_cut
    return Cut(module, done.plan, ladder, step.weights, done.difference, figures, notes)


def _living(config: Config, largest: float | None) -> list[str]:
    """A line where the law had its choice at zero and the cut took others; ``largest`` of the scales that went."""
    if not largest or "sparse" not in config.phases or config.penalty["name"] != "target":
        return []
    criterion = config.criterion["name"]
    advice = "" if criterion == "gamma" else f" criterion={criterion} ranks them otherwise: set criterion=gamma."
    return [f"Channels went that penalty=target had not brought to zero (scales up to {largest:.3g}).{advice}"]


def _evaluate_unrecovered(parts: Components, module: pl.LightningModule, plan: Plan) -> dict[str, float]:
    """The validation metric of the masked and of the rebuilt network, nothing recovered; ``module`` ends up thin."""
    parts.thin(module, plan, masked=True)
    masked = evaluate(parts, module, "val")
    parts.thin(module, plan)
    return {"masked": masked, "rebuilt": evaluate(parts, module, "val")}


def pruning(parts: Components, number: int, *, recover: bool = True) -> ChannelPruning:
    """The callback of the configuration, with the budget of the pass ``number``."""
    recovery = parts.config.recovery
    options = {
        "absorb": recovery.absorb,
        "least_squares": recovery.least_squares_batches,
        "batches": recovery.recalibrate_batches,
    }
    return ChannelPruning(recover=options if recover else False, **pruning_options(parts, number))


def pruning_options(parts: Components, number: int) -> dict[str, Any]:
    """Budget of the pass ``number``, criterion, limits and network, as callbacks of :mod:`slim.lightning` take them."""
    config = parts.config
    criterion = dict(config.criterion)
    if criteria.needs_data(criterion["name"]):
        criterion["loader"] = _ranking_pairs(parts, parts.module(), None, criterion.get("batches", 8))
    (kind, whole), amount = config.budget, config.passes[number].amount
    return {
        kind: amount,
        "criterion": criterion,
        "network": config.network,
        "example": parts.example,
        "trace": config.prune.tracing,
        **limits_due(parts.limits, kind, amount, whole),
    }


def rehearse(parts: Components, module: pl.LightningModule, graph: ChannelGraph) -> None:
    """Rank the untrained network, with two samples where data are needed, and select: better now than after hours.

    Args:
        parts: Of the run.
        module: For this alone: a step of one that is not slim's own is run on it.
        graph: Of its network.

    Raises:
        SlimError: An option, a pattern or a budget that cannot be met by whatever training comes to; or a step that no
            thin network can follow.
    """
    kind, amount = parts.config.budget
    few = [tree_map_only(Tensor, lambda tensor: tensor[:2], next(iter(validation_batches(parts.data))))]
    graph.model.to(parts.hardware.device)
    slim.select_groups(graph, score(parts, graph, few), **{**parts.limits, kind: amount})
    graph.model.cpu()
    if not str(parts.config.module["_target_"]).startswith("slim.tasks."):
        traced = parts.traced(parts.network(module))
        traced.graph = graph
        check_own_calls(module, traced, own_calls(module, traced.network, few[0]), few[0], parts.limits)


def score(parts: Components, graph: ChannelGraph, batches: Iterable[Any] | None = None) -> Scores:
    """The criterion of the configuration on a network; ``batches`` are of the training data by default."""
    options = dict(parts.config.criterion)
    if criteria.needs_data(options["name"]):
        options["loader"] = _ranking_pairs(parts, parts.module(), batches, options.get("batches", 8))
    return slim.score(graph, options.pop("name"), **options)


def _ranking_pairs(parts: Components, module: Any, batches: Iterable[Any] | None, count: Any) -> list[Any]:
    """What the module's step would give its network, and the targets: for criteria that look at data."""
    count = count if isinstance(count, int) and count > 0 else 1  # what is none the criterion then refuses
    given = ranking_batches(parts, count) if batches is None else batches
    pairs = Calibration(module, parts.network(module), given, None).batches(count)
    if isinstance(module, Segmentation):  # the loss of criteria is torch's, which leaves out another label
        return [(x, y.masked_fill(y == IGNORE_INDEX, nn.CrossEntropyLoss().ignore_index)) for x, y in pairs]
    return pairs


def calibration_batches(parts: Components) -> Iterable[Any]:
    """Batches as trained on, augmented, the same every time: for weights and BatchNorm's statistics."""
    recovery = parts.config.recovery
    count = max(recovery.least_squares_batches, recovery.recalibrate_batches)
    if hasattr(parts.data, "calibration_batches"):
        found: Iterable[Any] = parts.data.calibration_batches(count)
        return found
    return first_batches(parts.data, count, parts.config.seed)


def ranking_batches(parts: Components, count: int) -> Iterable[Any]:
    """``count`` training batches for criteria, without augmentation where the data module knows how."""
    if hasattr(parts.data, "plain_batches"):
        plain: Iterable[Any] = parts.data.plain_batches(count)
        return plain
    return first_batches(parts.data, count, parts.config.seed)


def _evaluation(parts: Components, module: pl.LightningModule) -> Any:
    """The metric of a network on held-out data, higher is better: in a module of its own with its other weights.

    An average of it that the module keeps has the network's weights there, since the module may evaluate that.
    """
    sign = 1.0 if parts.config.metric.mode == "max" else -1.0

    def value(network: nn.Module) -> float:
        twin = parts.module(plan=plan_of(network))
        followed = parts.followed(twin)
        inside = {id(tensor) for part in followed for tensor in (*part.parameters(), *part.buffers())}
        mine = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            if id(tensor) not in inside:
                tensor.data.copy_(mine[name].data)
        for part in followed:
            part.load_state_dict(network.state_dict())
        return sign * evaluate(parts, twin, "val")

    return value


# Figures


def _gammas(graph: ChannelGraph) -> dict[str, list[float]]:
    """|gamma| of every scale of the network before the cut, by module."""
    found = {}
    for scale in graph.scales:
        if scale.weight is not None:
            gamma = graph.model.get_parameter(scale.weight).detach().abs().cpu().double()
            found[scale.module] = gamma.tolist()
    return found


def _removed(graph: ChannelGraph, gammas: dict[str, list[float]], selection: Selection) -> dict[str, Any]:
    """The gammas, which of them went, and the largest of those."""
    removed = {
        scale.module: [bool(group >= 0 and selection.removed[group]) for group in scale.groups]
        for scale in graph.scales
        if scale.module in gammas
    }
    cut = [value for name, values in gammas.items() for value, gone in zip(values, removed[name], strict=True) if gone]
    return {"gammas": gammas, "removed": removed, "cut": max(cut) if cut else None}


def _describe(parts: Components, graph: ChannelGraph, selection: Selection, plan: Plan) -> dict[str, Any]:
    """Budget, widths, depth and MACs of a cut; of the dense network, whatever was thinner before."""
    dense = parts.dense_graph
    before = dict(zip((layer.module for layer in dense.layers), dense.layer_macs(), strict=True))
    after = dict(zip((layer.module for layer in graph.layers), graph.layer_macs(selection.removed), strict=True))
    return {
        "requested": dict(selection.requested),
        "achieved": dict(selection.achieved),
        "plan_hash": plan.hash,
        "widths": {name: list(pair) for name, pair in plan.widths.items()},
        "depth": [dense.depth(), graph.depth(selection.removed)],
        "layer_macs": {layer: [macs, after.get(layer, 0)] for layer, macs in before.items()},
    }


def _in_units_of_the_metric(parts: Components, step: Step) -> Step:
    """Recovery maximizes; of an error it has seen the negative."""
    if parts.config.metric.mode == "max" or step.before is None or step.after is None:
        return step
    return dataclasses.replace(step, before=-step.before, after=-step.after)
