"""The finished jobs as a table in README.md: mean and deviation over the seeds, cost, and what was published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
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
    "mlp-mnist/ratio-0.8": "paper 98.51 of 98.57, at 15.6% of the parameters",
    "resnet56-c10/macs-0.476": "DepGraph 93.77, slimming 93.27 to 93.29, polarization 93.83",
}
"""Liu et al. 2017, Tables 1 and 3; Eric-mingjie/network-slimming; Torch-Pruning; Zhuang et al. 2020: accuracy %."""


def by_way(results: Mapping[str, Any], scale: str) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """(network and budget, way of training) -> seed -> figures, of what is finished, in the order of the jobs.

    Beside a job's own figures ``to_dense``, points of accuracy over the dense network of the same seed and machine.
    """
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for job in jobs(SCALES[scale]):
        *where, way, seed = job.name.split("/")
        by_seed = found.setdefault(("/".join(where), way), {})
        if (own := results.get(f"{scale}/{job.name}")) is not None:
            more = {"to_dense": 100 * (own["accuracy"] - own["dense"])} if "dense" in own else {}
            by_seed[int(seed[1:])] = {"teacher": 0.0, **own, **more}
    return {which: by_seed for which, by_seed in found.items() if by_seed}


def rows(results: Mapping[str, Any], scale: str) -> list[str]:
    """One line per network, budget and way."""
    lines = []
    for (where, way), by_seed in by_way(results, scale).items():
        each = list(by_seed.values())
        published = f" ({PUBLISHED[where]})" if where in PUBLISHED and way == "paper" else ""
        cells = (
            where + published,
            way,
            str(len(each)),
            spread([100 * value for value in _all(each, "at_cut")]),
            spread([100 * value for value in _all(each, "accuracy")]),
            spread(_all(each, "to_dense"), "+.2f"),
            f"{statistics.mean(_all(each, 'params')) / 1e6:.3f} M",
            _millions(statistics.mean(_all(each, "macs"))),
            spread(_all(each, "fast")),
            f"{statistics.mean(_all(each, 'seconds')):.0f}",
            f"{statistics.mean(_all(each, 'teacher')):.0f}",
        )
        lines.append(_line(cells))
    return lines


def write(results: Mapping[str, Any], page: Path = PAGE) -> None:
    """Fill the page between its marks."""
    parts = []
    for scale in SCALES:
        if lines := rows(results, scale):
            parts.append("\n".join([f"Scale `{scale}`:", "", _line(HEAD), "|---" * len(HEAD) + "|", *lines]))
    fill(page, MARKS, "\n\n".join(parts) or "Nothing is finished yet.")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e6:.3f} M"


def _all(each: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in each if key in row]
