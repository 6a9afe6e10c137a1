"""`python -m experiments.nocliff.table`: results.json as a table, mean and deviation over the seeds, into README.md."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from experiments.nocliff.jobs import RESULTS
from experiments.page import fill, spread

MARKS = "<!-- table: python -m experiments.nocliff.table -->", "<!-- end of table -->"
REPAIR_MARKS = "<!-- repair: python -m experiments.nocliff.table -->", "<!-- end of repair -->"
REPAIR = tuple(f"{key}{more}" for key in ("sparse", "rebuilt", "least_squares") for more in ("", "_recalibrated"))


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per network and way of training: seeds, accuracy, distance to dense, share removed, MACs, parameters."""
    by_way: dict[str, dict[str, dict[str, Any]]] = {}
    for name, result in results.items():
        if not name.startswith(("curve/", "repair/")):
            way, _, seed = name.rpartition("/")
            by_way.setdefault(way, {})[seed] = result
    found = []
    for way, by_seed in by_way.items():
        each = list(by_seed.values())
        dense = by_way.get(way.partition("/")[0] + "/dense", {})
        # Of the same seeds: seeds differ from each other by as much as ways of training.
        gaps = [result["accuracy"] - dense[seed]["accuracy"] for seed, result in by_seed.items() if seed in dense]
        gap = "" if way.endswith("/dense") else spread(gaps, "+.2f")
        at_the_cut = [
            f"{average(each, key):.2f}" if key in each[0] else "" for key in ("sparse", "rebuilt", "recalibrated")
        ]
        sizes = [f"{100 * average(each, key):.0f}%" if key in each[0] else "" for key in ("removed", "macs", "params")]
        found.append((way, str(len(each)), spread([r["accuracy"] for r in each]), gap, *at_the_cut, *sizes))
    return found


def average(each: list[dict[str, Any]], key: str) -> float:
    """Mean of one figure over the seeds."""
    return statistics.mean(r[key] for r in each)


def markdown(results: dict[str, Any]) -> str:
    """The table."""
    head = ("job", "seeds", "accuracy", "to dense", "sparse", "cut", "recalibrated", "removed", "MACs", "parameters")
    lines = [head, ("---",) * len(head), *rows(results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def repair(results: dict[str, Any]) -> str:
    """What a cut costs and recovery gives back where nothing is trained afterwards: a row per network and cut."""
    by_cut: dict[str, list[dict[str, Any]]] = {}
    for name, result in results.items():
        if name.startswith("repair/"):
            by_cut.setdefault(name.removeprefix("repair/").rpartition("/")[0], []).append(result)
    head = (
        *("cut", "seeds", "before it", "before it, recalibrated", "cut", "recalibrated"),
        *("least squares", "least squares, recalibrated", "MACs"),
    )
    lines = [head, ("---",) * len(head)]
    for cut, each in by_cut.items():
        figures = [spread([one[key] for one in each]) for key in REPAIR]
        lines.append((cut, str(len(each)), *figures, f"{100 * average(each, 'macs'):.0f}%"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    found, page = RESULTS.read(), Path(__file__).parent / "README.md"
    fill(page, MARKS, markdown(found))
    fill(page, REPAIR_MARKS, repair(found))
    print(markdown(found), repair(found), sep="\n\n")
