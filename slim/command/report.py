"""Show the report of a run, or compare several.

slim report outputs/vgg_slim/<id>
slim report outputs/vgg_slim/* --json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from slim.channels.text_table import align
from slim.errors import SlimError
from slim.files import read_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", nargs="+", help="run directories")


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """The records of the runs, by directory."""
    return {run: _record(Path(run)) for run in dict.fromkeys(args.run)}


def text(found: dict[str, Any]) -> str:
    """One run: its report. Several: a row for the last network of each."""
    from slim.report import markdown, tables

    if len(found) == 1:
        return markdown.render(next(iter(found.values())), [])
    rows: list[tuple[str, ...]] = []
    for run, record in found.items():
        rows = rows or [("run", *tables.columns(record), "")]
        last = tables.cells(record)[-1]
        rows.append((run, *(cell.value for cell in last), ""))
    return "\n".join(align(rows))


def _record(run: Path) -> dict[str, Any]:
    path = run / "report.json" if run.is_dir() else run
    if not path.is_file():
        hint = f"Finish it: slim train resume={run}." if (run / "state.json").is_file() else "Check the path."
        raise SlimError(f"A run must have a report. Got {run} without report.json. {hint}")
    record = read_json(path, what="report")
    if not isinstance(record, dict) or not isinstance(record.get("rows"), dict):
        raise SlimError(f"A report holds a row per network. Got {path}. Give the directory of a run.")
    return record
