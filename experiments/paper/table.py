"""The finished jobs as a table in README.md: mean and deviation over the seeds, cost, and what was published."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.page import fill, spread
from experiments.paper.jobs import SCALES, jobs

PAGE = Path(__file__).parent / "README.md"
MARKS = "<!-- table: python -m experiments.paper -->", "<!-- end of table -->"
HEAD = (
    "network, budget", "trained", "seeds", "at the cut", "accuracy", "to dense", "parameters", "MACs",
    "times as fast", "seconds", "the teacher's",
)  # fmt: skip

LATENCY = "latency_ms_b64"

PUBLISHED = {
    "vgg19-c10/ratio-0.7": "paper 93.80, port 93.78",
    "vgg19-c100/ratio-0.5": "paper 73.48, port 73.32",
    "vgg19-c100/macs-0.112": "DepGraph 70.39",
    "preresnet164-c10/ratio-0.4": "paper 94.92, port 95.05",
    "preresnet164-c10/ratio-0.6": "paper 94.73, port 93.81",
    "preresnet164-c100/ratio-0.4": "paper 77.13, port 77.36",
    "preresnet164-c100/ratio-0.6": "paper 76.09",
    "densenet40-c10/ratio-0.4": "paper 94.81, port 94.32",
    "densenet40-c10/ratio-0.7": "paper 94.35",
    "densenet40-c100/ratio-0.4": "paper 74.72, port 73.76",
    "densenet40-c100/ratio-0.6": "paper 74.28, port 73.19",
    "resnet56-c10/macs-0.476": "DepGraph 93.77, slimming 93.27 to 93.29, polarization 93.83",
}
"""Liu et al. 2017, Table 1; Eric-mingjie/network-slimming; Torch-Pruning; Zhuang et al. 2020: accuracy %."""


def rows(output: Path, scale: str) -> list[str]:
    """One line per network, budget and way, of what is finished below ``output/scale``."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for job in jobs(SCALES[scale]):
        path = output / scale / job.name / "report.json"
        if path.is_file() and (report := json.loads(path.read_text()))["status"] == "finished":
            *where, way, seed = job.name.split("/")
            teacher = output / scale / (job.needs or "") / "report.json"
            found["/".join(where), way][int(seed[1:])] = {
                **_last(report),
                "seconds": _seconds(report),
                "teacher": _seconds(json.loads(teacher.read_text())) if job.needs and teacher.is_file() else 0.0,
            }
    lines = []
    for (where, way), by_seed in found.items():
        dense = found.get((where.split("/")[0], "dense"), {})
        gaps = [100 * (row["accuracy"] - dense[seed]["accuracy"]) for seed, row in by_seed.items() if seed in dense]
        each = list(by_seed.values())
        cells = [
            where + (f" ({PUBLISHED[where]})" if where in PUBLISHED and way == "paper" else ""),
            way,
            str(len(each)),
            spread([100 * row["cut"] for row in each if "cut" in row]),
            spread([100 * row["accuracy"] for row in each]),
            "" if way == "dense" else spread(gaps, "+.2f"),
            f"{_mean(each, 'params') / 1e6:.3f} M",
            f"{_mean(each, 'macs') / 1e6:.1f} M",
            f"{_mean(each, 'faster'):.2f}" if "faster" in each[0] else "",
            f"{_mean(each, 'seconds'):.0f}",
            f"{_mean(each, 'teacher'):.0f}",
        ]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows if key in row)


def write(output: Path, page: Path = PAGE) -> None:
    """Fill the page between its marks."""
    parts = []
    for scale in (name for name in SCALES if name != "smoke"):
        if lines := rows(output, scale):
            parts.append("\n".join([f"Scale `{scale}`:", "", _line(HEAD), "|---" * len(HEAD) + "|", *lines]))
    body = "\n\n".join(parts) or "Nothing is finished yet."
    fill(page, MARKS, body)


def _last(report: dict[str, Any]) -> dict[str, float]:
    """The last network of a run, and what it was at the cut; accuracies in [0, 1]."""
    rows = report["rows"]
    row = rows[next(name for name in ("finetuned", "recovered", "rebuilt", "sparse", "dense") if name in rows)]
    found = {"accuracy": row["metric"], "macs": row["macs"], "params": row["params"]}
    if cut := rows.get("recovered") or rows.get("rebuilt"):
        found["cut"] = cut["metric"]
    if LATENCY in row and row["macs"] < rows["dense"]["macs"]:
        found["faster"] = rows["dense"][LATENCY] / row[LATENCY]
    return found


def _seconds(report: dict[str, Any]) -> float:
    return float(report.get("seconds") or sum(phase.get("seconds", 0.0) for phase in report["phases"].values()))
