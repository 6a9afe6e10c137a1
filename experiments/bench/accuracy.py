"""Slim while training: the accuracy of runs rebuilt after every sparse epoch, against one late cut, over seeds."""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments.bench.row import Row
from experiments.bench.runs import MACS, NETWORKS, Size, record, trained


def run(quick: bool, data: Path | None, again: bool) -> list[Row]:
    """At most 0.5 points below one late cut, in the mean over seeds; the deviation of that mean is told beside it."""
    seeds, size = (2, Size(128, 64, 2, 1)) if quick else (3, Size(4000, 10_000, 8, 4))
    rows = []
    for network in NETWORKS:
        score: dict[str, list[float]] = {"early": [], "late": []}
        for seed in range(seeds):
            for kind, values in score.items():
                told = record(trained(network, kind, size, data, seed=seed, again=again))
                values.append(100 * told["rows"]["finetuned"]["metric"])
        early, late = statistics.mean(score["early"]), statistics.mean(score["late"])
        gaps = [one - other for one, other in zip(score["early"], score["late"], strict=True)]
        error = statistics.stdev(gaps) / seeds**0.5
        rows.append(
            Row(
                "accuracy",
                f"{network}, {MACS:.0%} of the MACs, rebuilt every epoch ({early:.2f} %) over one late cut "
                f"({late:.2f} %), {seeds} seeds, {size.images} images x {size.epochs} epochs; +- {error:.2f}",
                early - late,
                "points",
                (">=", -0.5),
                score,
            )
        )
    return rows
