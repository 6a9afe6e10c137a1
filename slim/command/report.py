"""Show the report of a run, or compare several: as a table, and as one page for a browser.

slim report outputs/vgg_slim/<id>
slim report outputs/vgg_slim/* --page compare.html
slim report outputs/vgg_slim/multirun-<id> --json
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from slim.channels.text_table import align
from slim.errors import SlimError
from slim.files import read_json, write_atomic


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", nargs="+", help="run directories, or those of sweeps for all their finished jobs")
    parser.add_argument("--page", metavar="FILE", help="also write a page that needs nothing but itself")


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """The records of the runs, by directory."""
    found = {run: _record(Path(run)) for given in args.run for run in _runs(given)}
    if args.page:
        _write_page(Path(args.page), found)
    return found


def text(found: dict[str, Any]) -> str:
    """One run: its report. Several: a row for the last network of each."""
    from slim.report import markdown, sweep, tables

    if len(found) == 1:
        return markdown.render(next(iter(found.values())), [])
    heads = {run: tables.columns(record) for run, record in found.items()}
    network, metric, *costs = next(iter(heads.values()))
    alike = len(set(heads.values())) == 1  # else every run says of which metric its value is
    rows: list[tuple[str, ...]] = [("run", network, metric if alike else "metric", *costs, "what differs")]
    differs = sweep.differences(found)
    for run, record in found.items():
        name, value, *rest = (cell.value for cell in tables.cells(record)[-1])
        rows.append((run, name, value if alike else f"{heads[run][1]} {value}", *rest, differs[run]))
    return "\n".join(align(rows))


def _runs(given: str) -> list[str]:
    """A directory as it is, or the finished jobs of a sweep's."""
    jobs = sorted(Path(given).glob("*/report.json"), key=lambda path: (len(path.parent.name), path.parent.name))
    if (Path(given) / "report.json").is_file() or not jobs:
        return [given]
    records = {str(job.parent): read_json(job, what="report") for job in jobs}
    finished = [run for run, record in records.items() if isinstance(record, dict) and record.get("rows")]
    return finished or [given]


def _write_page(path: Path, found: dict[str, Any]) -> None:
    """The page of a run as it was, drawn again from its report; of several the page that compares them."""
    from slim.report import html, sweep

    if len(found) == 1:
        write_atomic(path, html.run_page(next(iter(found.values()))))
    else:
        write_atomic(path, sweep.compare(found, shlex.join(["slim", "report", *found])))


def _record(run: Path) -> dict[str, Any]:
    from slim.report import sweep

    path = run / "report.json" if run.is_dir() else run
    if not path.is_file():
        hint = (
            f"Finish it: slim train {shlex.quote(f'resume={run}')}."
            if (run / "state.json").is_file()
            else "Check the path."
        )
        raise SlimError(f"A run must have a report. Got {run} without report.json. {hint}")
    record = sweep.read_record(path)
    if "rows" not in record:
        raise SlimError(f"A report holds a row per network. Got {path}. Give the directory of a run.")
    # A run may have been moved since: its files are beside the report.
    paths = record.get("paths") or {}
    before, now = str(paths.get("tensorboard")), str(path.parent.absolute())
    moved = {key: now + file.removeprefix(before) for key, file in paths.items() if str(file).startswith(before)}
    return {**record, "paths": {**paths, **moved}}
