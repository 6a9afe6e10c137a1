"""The end of a run: the one look at the test set, the measured latencies, the artifact and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import slim
from slim import report
from slim.channels import Plan, plan_of
from slim.files import write_json
from slim.runs import cut, judge, record
from slim.runs.source import load_network
from slim.runs.state import State
from slim.runs.workspace import Workspace
from slim.report import environment, latency

ROW_OF = {"baseline": "dense", "sparse": "sparse", "finetune": "finetuned"}
"""Which row of the table a phase's network is; of several passes the last counts."""


def finish(work: Workspace, directory: Path, state: State, say: Callable[[str], None]) -> dict[str, Any]:
    """Write ``model.safetensors``, the report and the HParams row; returns the record."""
    networks = _networks(work, directory, state)
    say("test set: read once, by every network of the run")
    test = judge.accuracies(networks, work.data.test_dataloader(), work.hardware.device)
    rows = {name: cut.row(work, network, accuracy=test[name]) for name, network in networks.items()}
    if "dense" not in rows:
        networks = {"dense": work.dense(), **networks}
        rows["dense"] = cut.row(work, networks["dense"], accuracy=None)
    thin = next(name for name in reversed(record.ROWS) if name in networks)
    lines = _time(work, networks, rows, thin)
    artifact = directory / "model.safetensors"
    slim.save(artifact, networks[thin], plan_of(networks[thin]))
    settings = work.settings
    told = record.build(
        name=settings.name,
        directory=directory,
        seed=settings.seed,
        schedule=settings.schedule.name,
        passes=len(settings.steps),
        data=work.data.name,
        model=str(settings.model["_target_"]).rsplit(".", 1)[-1],
        input_shape=work.input_shape(),
        phases=_phases(state, test),
        rows=rows,
        cut=_cut(state),
        cuts=_cuts(state),
        history={name: figures["history"] for name, figures in state.phases.items() if "history" in figures},
        notes=state.notes,
        latency=lines,
        environment={**environment.describe(), "hardware": work.hardware.line},
        artifact=artifact,
    )
    write_json(directory / "report.json", told)
    report.write(directory, told)
    _hparams(work, directory, told)
    state.finished = True
    state.save()
    return told


def _networks(work: Workspace, directory: Path, state: State) -> dict[str, nn.Module]:
    """The run's networks by row, from what the phases left."""
    found: dict[str, nn.Module] = {}

    def load(phase: str) -> nn.Module:
        return load_network(work, directory / phase / "network.safetensors")

    before = load("start") if "start" in state.phases else work.dense()
    for phase in state.phases:
        kind = phase.partition("-")[0]
        if kind == "prune":
            plan = Plan.from_json((directory / phase / "plan.json").read_bytes())
            found |= {"masked": slim.mask(before, plan), "rebuilt": slim.rebuild(before, plan)}
            before = found[_row_after_cut(state.phases[phase])] = load(phase)
            found.setdefault("sparse", load("start")) if "start" in state.phases else None
        elif kind in ROW_OF:
            network = load(phase)
            found[ROW_OF[kind]] = network
            before = before if kind == "baseline" and work.settings.first == "sparse" else network
    return {name: found[name] for name in record.ROWS if name in found}


def _time(work: Workspace, networks: dict[str, nn.Module], rows: dict[str, Any], thin: str) -> dict[int, str]:
    """Measured latency of the dense and the thin network, side by side on the run's device."""
    timed = {"dense": networks["dense"], thin: networks[thin]}
    device = work.hardware.device
    ready = {name: network.to(device) for name, network in timed.items()}
    found = latency.compare(ready, work.example.to(device), batches=(1, 64), seconds=work.settings.latency_seconds)
    for name in ready:
        ready[name].cpu()
        rows[name] |= {f"latency_ms_b{batch}": millis for batch, millis in found.millis[name].items()}
    # Same shapes, same time: these rows differ from their twins in weights alone.
    for twin in ("rebuilt", "recovered", "restarted"):
        if twin in rows and rows[twin]["macs"] == rows[thin]["macs"]:
            rows[twin] |= {key: value for key, value in rows[thin].items() if key.startswith("latency")}
    return dict(found.statements)


def _phases(state: State, test: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Figures of every phase; the test accuracy belongs to the last pass."""
    keys = ("val", "best_val", "best_epoch", "epochs", "steps", "seconds", "validation", "weights", "slimmed")
    phases = {name: {key: figures[key] for key in keys if key in figures} for name, figures in state.phases.items()}
    last = {name.partition("-")[0]: name for name in phases}
    for kind, name in last.items():
        row = _row_after_cut(state.phases[name]) if kind == "prune" else ROW_OF.get(kind)
        if row in test:
            phases[name]["accuracy"] = test[row]
    return phases


def _cut(state: State) -> dict[str, Any] | None:
    keys = ("requested", "achieved", "plan_hash", "widths", "layer_macs", "gammas", "removed", "cut")
    cuts = [figures for name, figures in state.phases.items() if name.partition("-")[0] == "prune"]
    return {key: cuts[-1][key] for key in keys} if cuts else None


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


def _hparams(work: Workspace, directory: Path, told: dict[str, Any]) -> None:
    from slim.callbacks.dashboard import log_hparams
    from slim.runs.schema import plain

    log_hparams(directory, plain(work.settings), told)
