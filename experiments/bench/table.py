"""Fills the table of README.md from results.json: ``python -m experiments.bench.table``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.bench.row import Row
from experiments.page import fill as put
from slim.report.environment import line

HERE = Path(__file__).parent
MARKS = "<!-- results: filled from results.json of a run on an idle machine -->", "<!-- end of results -->"


def fill(results: Mapping[str, Any], page: Path = HERE / "README.md") -> None:
    """Write what was measured between the page's two markers, each line with its command and whether it was reached."""
    put(page, MARKS, "\n".join(lines(results)))


def lines(results: Mapping[str, Any]) -> list[str]:
    """The table as Markdown, one row per number."""
    found = [
        "| what | measured | aim | reached | command: `python -m experiments.bench` |",
        "|---|---:|---:|---|---|",
    ]
    for group, told in results.items():
        for row in map(Row.of, told["rows"]):
            _, what, measured, aim, verdict = row.cells()
            what = what.replace("|", "\\|").replace("_", "\\_").replace("<", "\\<")
            found.append(f"| {row.group}: {what} | {measured} | {aim} | {verdict} | `--only {group}` |")
    kinds = {line(told["environment"]) for told in results.values()}
    loads = [told["environment"]["load"] for told in results.values()]
    revisions = {str(told["environment"]["git"]).rstrip("+") for told in results.values()}
    if kinds:
        load = f"load before each group {min(loads):.1f} to {max(loads):.1f}"
        found += ["", f"Machine: {'; '.join(sorted(kinds))}; {load}; revision {', '.join(sorted(revisions))}."]
    if (HERE / "slimming.png").is_file() and "slimming" in results:
        found += ["", "![Images per second and MACs over the epochs](slimming.png)"]
    return found


def main() -> int:
    fill(json.loads((HERE / "results.json").read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
