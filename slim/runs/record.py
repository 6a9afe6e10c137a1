"""The record of a run: one plain dict, the content of report.json, built from what the phases left behind.

Keys (a missing one means: not known in this run)::

    experiment, data, model, seed, status      "finished", or "failed" with error: one line
    metric            {name, mode (max, min), percent}: what networks are compared by
    schedule, passes  its name, and how many cuts it makes
    input_shape       "1x3x32x32", the example the MACs are counted on
    phases            {name: {metric (test, last epoch), val, best_val, best_epoch, epochs, seconds, steps}}
    rows              {dense | sparse | masked | rebuilt | recovered | restarted | finetuned:
                        {metric (test), channels, params, macs, latency_ms_b1, latency_ms_b64}}
                        of several passes the last; restarted stands in for recovered where the thin network goes on
                        from rewound or fresh weights
    cuts              [{phase, requested, achieved, weights, validation: {row: metric}, finetuned (validation)}]
    requested, achieved   {budget name: number}, of the dense network, after the last cut; plan_hash: hex
    widths            {layer: [dense, after]};  layer_macs: {layer: [dense, after]}
    depth             [dense, after]: convolutions and linear layers of one forward
    gammas            {layer: [|gamma| before the cut]};  removed: {layer: [bool]};  cut: largest removed |gamma|
    recovery          [{name, before, after, kept, reason}]: the steps after the cut, and whether they stayed
    why_kept          {layer: a phrase on the channels that are left}
    stayed            [{reason, advice, share, where}]: the largest reasons for what could not go, of all groups
    history           {phase: {train_loss, train_accuracy, val_loss, val_accuracy: one number per epoch, or null}}
    export            {files: {format: {file, bytes, images, difference (relative), agreement, reference, metric}},
                        ladder: [{name, metric (test), bytes, latency_ms_b1, latency_ms_b64}]}; reference and metric:
                        of the network and of the file, on the same held-out images
    notes             one line each: selection, shrink budget, warnings
    latency           {"1": statement, "64": statement}
    layer_ms          {layer: [dense, after]}: measured milliseconds within a forward, batch 1
    environment       versions, processor, device, git revision
    command           what repeats the run, for the shell
    paths             {artifact, report, page, tensorboard}

Metrics are as the module logs them: accuracies are fractions in [0, 1]. Everything but ``seconds``, latencies,
``environment``, ``command`` and ``paths`` is a function of configuration and seed (on one machine): a resumed run ends
with the same values as one that was left alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = ("dense", "sparse", "masked", "rebuilt", "recovered", "restarted", "finetuned")
"""The networks of a run, in the order they come to be."""

TIMED = ("seconds", "latency", "latency_ms_b1", "latency_ms_b64", "layer_ms", "environment", "command", "paths")
"""Keys whose values belong to the machine, the moment, and where the run was written."""


def build(
    *,
    name: str,
    directory: Path,
    seed: int,
    schedule: str,
    passes: int,
    data: str,
    model: str,
    metric: Mapping[str, Any],
    input_shape: str,
    phases: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    cut: Mapping[str, Any] | None,
    cuts: Sequence[Mapping[str, Any]],
    history: Mapping[str, Mapping[str, Sequence[float]]],
    notes: Sequence[str],
    latency: Mapping[int, str],
    layer_ms: Mapping[str, Sequence[float]],
    environment: Mapping[str, Any],
    command: str,
    artifact: Path | None,
    page: Path | None,
    export: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the pieces of a finished run together. ``cut`` is what the (last) prune phase recorded, or ``None``."""
    return {
        "experiment": name,
        "status": "finished",
        "data": data,
        "model": model,
        "metric": dict(metric),
        "seed": seed,
        "schedule": schedule,
        "passes": passes,
        "input_shape": input_shape,
        "phases": {key: dict(value) for key, value in phases.items()},
        "rows": {key: dict(rows[key]) for key in ROWS if key in rows},
        **(dict(cut) if cut else {}),
        **({"cuts": [dict(each) for each in cuts]} if cuts else {}),
        "history": {key: dict(value) for key, value in history.items()},
        **({"export": dict(export)} if export else {}),
        "notes": list(notes),
        "latency": {str(batch): line for batch, line in latency.items()},
        "layer_ms": {key: list(value) for key, value in layer_ms.items()},
        "environment": dict(environment),
        "command": command,
        "paths": _paths(directory, artifact, page),
    }


def _paths(directory: Path, artifact: Path | None, page: Path | None) -> dict[str, str | None]:
    """Where a run left what; ``None`` for what it did not write."""
    return {
        "artifact": None if artifact is None else str(artifact),
        "report": str(directory / "report.md"),
        "page": None if page is None else str(page),
        "tensorboard": str(directory),
    }


def command(overrides: Sequence[str], options: Sequence[str] = ()) -> str:
    """What repeats a run, for the shell; where it writes is left out.

    Args:
        overrides: Of the run.
        options: Where else configuration is looked for, as in :class:`slim.runs.state.State`.

    >>> command(["+experiment=vgg_slim", "model.widths=[8, M]", "hydra.run.dir=x"])
    "python train.py +experiment=vgg_slim 'model.widths=[8, M]'"
    """
    from slim.runs.processes import program

    places = ("hydra.run.", "hydra.sweep.", "output=", "resume=")
    kept = (item for item in overrides if not item.lstrip("+~").startswith(places))
    return f"{program()} {shlex.join([*options, *kept])}".rstrip()


def failed(name: str, error: str) -> dict[str, Any]:
    """What a run that did not end leaves for the table of its sweep."""
    return {"experiment": name, "status": "failed", "error": error}


def timeless(record: Any) -> Any:
    """``record`` without what belongs to the machine and the moment; equal for equal configuration and seed.

    >>> timeless({"rows": {"dense": {"metric": 0.9, "latency_ms_b1": 3.1}}, "paths": {}})
    {'rows': {'dense': {'metric': 0.9}}}
    """
    if isinstance(record, list):
        return [timeless(value) for value in record]
    if isinstance(record, Mapping):
        return {key: timeless(value) for key, value in record.items() if key not in TIMED}
    return record
