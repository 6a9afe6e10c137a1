"""``results.json``: figures of every finished job, which stay when its run directory goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.paper.jobs import SCALES, jobs
from experiments.store import Store

RESULTS = Store(Path(__file__).parent / "results.json")
LATENCY = "latency_ms_b64"


def collect(output: Path, scale: str) -> dict[str, dict[str, Any]]:
    """``<scale>/<job>`` -> its figures, of what is finished below ``output/scale``.

    Beside a row's own figures: ``dense``, the accuracy of the dense network of its seed, and ``teacher``, the seconds
    of the job that taught it, both below the same ``output``: on another machine the same seed is another network.
    """
    found = {}
    for job in jobs(SCALES[scale]):
        path = output / scale / job.name / "report.json"
        if path.is_file() and (report := json.loads(path.read_text()))["status"] == "finished":
            row = found[f"{scale}/{job.name}"] = figures(report)
            network, *_, way, seed = job.name.split("/")
            dense = found.get(f"{scale}/{network}/dense/{seed}")  # an earlier job
            if dense is not None and way != "dense":
                row["dense"] = dense["accuracy"]
                row["teacher"] = 0.0 if job.needs is None else dense["seconds"]
    return found


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of the report of a run or of a rival.

    Returns:
        Of the last network ``accuracy`` in [0, 1], ``params``, ``macs``, ``seconds`` of all phases; where there was a
        cut its accuracy ``at_cut`` before fine-tuning and how many times as ``fast`` as the dense network it is at
        batch 64.
    """
    rows = report["rows"]
    row = rows[next(name for name in ("finetuned", "recovered", "rebuilt", "sparse", "dense") if name in rows)]
    seconds = report.get("seconds") or sum(phase.get("seconds", 0.0) for phase in report["phases"].values())
    found = {"accuracy": row["metric"], "params": row["params"], "macs": row["macs"], "seconds": round(seconds, 1)}
    if cut := rows.get("recovered") or rows.get("rebuilt"):
        found |= {"at_cut": cut["metric"], "fast": round(rows["dense"][LATENCY] / row[LATENCY], 3)}
    environment = report["environment"]
    return found | {"machine": environment["processor"], "device": environment["device"], "git": environment["git"]}
