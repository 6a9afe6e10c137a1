"""The end of a run: the one look at the test data, measured latencies, the artifact, and the report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import slim
from slim import recipe, report
from slim.artifact import NORMALIZATION, read_header
from slim.channels import ChannelGraph, Plan, plan_of
from slim.errors import SlimError
from slim.files import write_json
from slim.report import environment, latency, layer_latency
from slim.runs import builders, predictions, processes, record, weights
from slim.runs.components import Components
from slim.runs.evaluation import evaluate
from slim.runs.state import State
from slim.runs.weights import NETWORK

ROW_OF = {"baseline": "dense", "sparse": "sparse", "finetune": "finetuned"}
"""Which row of the table a phase's network is; of several passes the last counts."""


def finish(
    parts: Components, directory: Path, state: State, say: Callable[[str], None], changed: Callable[[], Sequence[str]]
) -> dict[str, Any]:
    """Write ``model.safetensors``, the report and the HParams row of ``changed`` overrides; returns the record."""
    say("test data: read once, by every network of the run")
    rows, kept, seen = {}, {}, {}
    size_of = _sizes(parts)
    for name, module in _modules(parts, directory, state):
        network = parts.network(module)
        rows[name] = {**size_of(network), "metric": evaluate(parts, module, "test")}
        if parts.config.figures and name in predictions.ROWS and processes.rank() == 0:
            seen[name] = predictions.predict(parts, module)
        kept[name] = network.cpu()
        thin = name
        if name != "dense":  # of the others only the last is needed below
            kept = {other: found for other, found in kept.items() if other in ("dense", name)}
    if "dense" not in rows:
        kept["dense"] = parts.dense()
        rows["dense"] = {**size_of(kept["dense"]), "metric": None}
    if processes.rank() != 0:
        return {}
    lines, layer_ms = _time(parts, {name: kept[name] for name in dict.fromkeys(("dense", thin))}, rows, thin)
    artifact = directory / "model.safetensors"
    _save(parts, artifact, kept[thin], kept["dense"])
    config = parts.config
    found = record.build(
        name=config.name,
        directory=directory,
        seed=config.seed,
        schedule=config.schedule.name,
        passes=len(config.passes),
        data=parts.data_name,
        model=_model_name(parts),
        metric=config.metric.model_dump(),
        input_shape=parts.input_shape,
        phases=_phases(state, rows),
        rows=rows,
        cut=_cut(state),
        cuts=_cuts(state),
        history={name: figures["history"] for name, figures in state.phases.items() if "history" in figures},
        notes=state.notes,
        latency=lines,
        environment={**environment.describe(), "hardware": parts.hardware.line},
        layer_ms=layer_ms,
        command=record.command(state.overrides, state.options),
        artifact=artifact,
        page=directory / "report.html" if config.figures else None,
        export=_exported(parts, directory, state, say),
    )
    _write(parts, directory, state, found, seen, changed())
    return found


def _write(
    parts: Components,
    directory: Path,
    state: State,
    found: dict[str, Any],
    seen: Mapping[str, list[Any]],
    changed: Sequence[str],
) -> None:
    """Write the record, the report and TensorBoard's overview; the run is finished then."""
    write_json(directory / "report.json", found)
    report.write(directory, found, pictures=parts.config.figures)
    _overview(parts, directory, found, seen, changed)
    state.finished = True
    state.save()


def _save(parts: Components, path: Path, thin: nn.Module, dense: nn.Module) -> None:
    """The artifact: how its dense network is built is written into it where that can be said and holds."""
    builder = None
    if parts.takes_network:
        found = builders.recipe(parts.config, parts.data)
        with contextlib.suppress(SlimError):
            again = recipe.build(found, trust=True)
            builder = found if _shapes(again) == _shapes(dense) else None
    metadata = {"input": parts.input_shape}
    if hasattr(parts.data, "normalize_as"):
        metadata |= {name: json.dumps(list(getattr(parts.data, name))) for name in NORMALIZATION}
    if hasattr(parts.data, "class_names"):
        metadata["classes"] = json.dumps(list(parts.data.class_names))
    slim.save(path, thin, plan_of(thin), builder=builder, metadata=metadata)


def _shapes(network: nn.Module) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((name, tuple(value.shape)) for name, value in network.state_dict().items())


def _overview(
    parts: Components,
    directory: Path,
    found: Mapping[str, Any],
    seen: Mapping[str, list[Any]],
    changed: Sequence[str],
) -> None:
    """TensorBoard's pages about the whole run, with the images that its first and last network see differently."""
    from slim.report.predictions import picture
    from slim.report.tensorboard import log_overview

    pictures = {}
    if len(seen) > 1:
        first, last = next(iter(seen)), list(seen)[-1]
        both = predictions.compared(seen[first], seen[last])
        title = f"{sum(one.amount > 0 for one in both)} of {len(both)} held-out images, {first} against {last} network"
        drawn = picture(both, getattr(parts.data, "class_names", ()), title)
        if drawn is not None:
            pictures["predictions/differ"] = drawn
    log_overview(directory, found, changed, pictures)


def _exported(parts: Components, directory: Path, state: State, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What the export phase wrote, and the ladder from the dense network to thin int8."""
    if "export" not in state.phases:
        return None
    from slim.runs import exporting

    say("export: the dense and the thin network in turns, in PyTorch, ONNX Runtime and int8")
    return {"files": state.phases["export"]["files"], "ladder": exporting.ladder(parts, directory, state)}


def _sizes(parts: Components) -> Callable[[nn.Module], dict[str, Any]]:
    """:func:`size` of a network, counted once for all of the same shapes."""
    known = {_shapes(parts.dense_graph.model): size(parts.dense_graph)}

    def of(network: nn.Module) -> dict[str, Any]:
        shapes = _shapes(network)
        if shapes not in known:
            known[shapes] = size(parts.trace(network))
        return known[shapes]

    return of


def size(graph: ChannelGraph) -> dict[str, int]:
    """Of a network, for the report's table."""
    return {
        "channels": sum(len(scale.groups) for scale in graph.scales) or len(graph),
        "params": graph.params(),
        "macs": graph.macs(),
    }


def _model_name(parts: Components) -> str:
    """Of the network, or of the module that builds its own."""
    path = parts.config.model.get("_target_") if parts.takes_network else parts.config.module["_target_"]
    return str(path).rsplit(".", 1)[-1]


def _modules(parts: Components, directory: Path, state: State) -> Iterator[tuple[str, Any]]:
    """The run's networks by row, in the table's order, one at a time: from the files that the phases left."""
    files: dict[str, tuple[Path | None, Plan | None, bool]] = {}
    plan: Plan | None
    before = directory / "start" / NETWORK if "start" in state.phases else None
    for phase in state.phases:
        kind, file = phase.partition("-")[0], directory / phase / NETWORK
        if kind == "prune":
            plan = Plan.from_json((directory / phase / "plan.json").read_bytes())
            files |= {"masked": (before, plan, True), "rebuilt": (before, plan, False)}
            files[_row_after_cut(state.phases[phase])] = (file, None, False)
            if "start" in state.phases:
                files.setdefault("sparse", (directory / "start" / NETWORK, None, False))
            before = file
        elif kind in ROW_OF:
            files[ROW_OF[kind]] = (file, None, False)
            before = before if kind == "baseline" and parts.config.first == "sparse" else file
    if not files and before is not None:  # a run that only exports
        files["sparse" if read_header(before).plan is None else "finetuned"] = (before, None, False)
    for name in (name for name in record.ROWS if name in files):
        path, plan, masked = files[name]
        module = parts.module() if path is None else weights.load(parts, path)
        parts.thin(module, plan, masked=masked)
        yield name, module


def _time(
    parts: Components, networks: dict[str, Any], rows: dict[str, Any], thin: str
) -> tuple[dict[int, str], dict[str, list[float]]]:
    """Measured latency of the dense and the thin network, side by side on the run's device.

    Returns:
        A statement for each batch size; and layer -> milliseconds at batch 1 of the dense and of the thin network.
    """
    device = parts.hardware.device
    ready = {name: network.to(device) for name, network in networks.items()}
    seconds = parts.config.latency_seconds
    example = tree_map_only(Tensor, lambda tensor: tensor.to(device), parts.example)
    found = latency.compare(ready, example, batches=(1, 64), seconds=seconds)
    layers = [layer.module for layer in parts.dense_graph.layers]
    millis = layer_latency.by_layer(ready, example, list(dict.fromkeys(layers)), seconds=seconds / 2)
    for name in ready:
        ready[name].cpu()
        rows[name] |= {f"latency_ms_b{batch}": median for batch, median in found.millis[name].items()}
    # Same shapes, same time: these rows differ from their twins in weights alone.
    for twin in ("rebuilt", "recovered", "restarted"):
        if twin in rows and rows[twin]["macs"] == rows[thin]["macs"]:
            rows[twin] |= {key: value for key, value in rows[thin].items() if key.startswith("latency")}
    both = [name for name in millis["dense"] if name in millis[thin]]
    return dict(found.statements), {name: [millis["dense"][name], millis[thin][name]] for name in both}


def _phases(state: State, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures of every phase; the metric on the test data belongs to the last pass."""
    keys = ("val", "best_val", "best_epoch", "epochs", "steps", "seconds", "validation", "weights", "slimmed")
    phases = {name: {key: figures[key] for key in keys if key in figures} for name, figures in state.phases.items()}
    last = {name.partition("-")[0]: name for name in phases}
    for kind, name in last.items():
        of_row = _row_after_cut(state.phases[name]) if kind == "prune" else ROW_OF.get(kind)
        if of_row is not None and (rows.get(of_row) or {}).get("metric") is not None:
            phases[name]["metric"] = rows[of_row]["metric"]
    return phases


CUT_KEYS = (
    *("requested", "achieved", "plan_hash", "widths", "depth", "layer_macs", "gammas", "removed", "cut"),
    *("recovery", "stayed", "why_kept"),
)


def _cut(state: State) -> dict[str, Any] | None:
    cuts = [figures for name, figures in state.phases.items() if name.partition("-")[0] == "prune"]
    return {key: cuts[-1][key] for key in CUT_KEYS if key in cuts[-1]} if cuts else None


def _cuts(state: State) -> list[dict[str, Any]]:
    """Every cut in a few numbers, with what the training after it came to."""
    found = []
    for name, figures in state.phases.items():
        kind, _, number = name.partition("-")
        if kind == "prune":
            after = state.phases.get(f"finetune-{number}" if number else "finetune", {})
            keys = ("requested", "achieved", "weights", "validation")
            found.append({"phase": name, **{key: figures[key] for key in keys}, "finetuned": after.get("val")})
    return found


def _row_after_cut(figures: Mapping[str, Any]) -> str:
    """Which row of the table is what the cut left: trained weights recovered, or others in their place."""
    return "recovered" if figures["weights"] == "trained" else "restarted"
