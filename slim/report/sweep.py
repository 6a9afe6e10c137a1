"""One table, one page and one figure over the jobs of a multirun."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slim.errors import SlimError
from slim.files import read_json, write_atomic, write_json
from slim.report import formatting
from slim.report.ends import ends, kept
from slim.report.html import Job, jobs_page
from slim.report.html.jobs import one_metric
from slim.report.metric import metric_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

COMMANDS = "commands.txt"
"""In a sweep directory: the command lines that started the sweep and went on with it, each once."""

HEAD = ("job", "what differs", "before", "after", "channels", "params", "MACs", "batch 1", "batch 64")
"""Accuracy of the first trained and the last network; what is left of the dense network's cost, time as measured."""

Jobs = list[tuple[str, Mapping[str, Any]]]


def jobs(directory: str | Path) -> Jobs:
    """The records of a sweep's jobs, by folder name, in the order of their numbers.

    A folder without a readable report.json is a job that failed; its error.txt, if any, says why. One that is locked
    is running, or was killed.

    Raises:
        SlimError: There is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise SlimError(f"A sweep is a directory of jobs. Got {directory}. Give the directory that the sweep printed.")
    found: Jobs = []
    for folder in sorted(directory.iterdir(), key=lambda place: (len(place.name), place.name)):
        if not folder.is_dir() or not any((folder / mark).exists() for mark in ("report.json", "error.txt", ".hydra")):
            continue
        try:
            record = read_record(folder / "report.json")
        except SlimError as error:
            note = folder / "error.txt"
            if (folder / "lock").exists() and not (folder / "report.json").exists() and not note.exists():
                found.append((folder.name, {"status": "running"}))
                continue
            why = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else str(error)
            record = {"status": "failed", "error": why}
        found.append((folder.name, record))
    return found


def read_record(path: Path) -> dict[str, Any]:
    """The content of a report.json, whose rows, if any, are those of networks.

    Raises:
        SlimError: It cannot be read, or is none.
    """
    record: Any = read_json(path, what="report")
    networks = record.get("rows", {}) if isinstance(record, dict) else None
    if not isinstance(networks, dict) or not all(isinstance(row, dict) for row in networks.values()):
        raise SlimError(f"A report holds a row per network. Got {path}. Give the directory of a run, or run it again.")
    return dict(record)


def rows(directory: str | Path) -> list[list[str]]:
    """One row of text per job, in the order of ``HEAD``; a failed job has its reason in the second cell."""
    return [_row(job) for job in _told_apart(directory)]


def _row(job: Job) -> list[str]:
    if job.state != "finished":
        return [job.name, job.told, *[formatting.MISSING] * 7]
    dense, thin = ends(job.record)
    keys = ("channels", "params", "macs", "latency_ms_b1", "latency_ms_b64")
    values = [metric_of(job.record).shown(row.get("metric")) for row in (dense, thin)]
    return [job.name, job.differs, *values, *(formatting.percent(kept(thin, dense, key), 1) for key in keys)]


def _told_apart(directory: str | Path) -> list[Job]:
    """The jobs, each with its overrides but for those that all share."""
    directory = Path(directory)
    found = jobs(directory)
    overrides = {name: _overrides(directory / name) for name, _ in found}
    every = [set(items) for items in overrides.values() if items] or [set()]  # none: it died before Hydra wrote them
    shared = set.intersection(*every)
    if len(every) == 1:  # which differs from its experiment
        shared = {item for item in shared if item.startswith("+experiment=")}
    pages = {name: f"{name}/report.html" for name, _ in found if (directory / name / "report.html").is_file()}
    return [
        Job(name, " ".join(item for item in overrides[name] if item not in shared), record, pages.get(name, ""))
        for name, record in found
    ]


def table(directory: str | Path) -> Table:
    """The sweep as a rich table: one row per job, the failed ones in red."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(
        title=Text("sweep", style="bold"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=Text("The metric before and after the cut; the rest is what is left of the dense network's."),
        caption_justify="left",
    )
    for index, name in enumerate(HEAD):
        out.add_column(name, justify="left" if index < 2 else "right", overflow="fold", no_wrap=index != 1)
    found = _told_apart(directory)
    short = _shortened([job.differs for job in found])
    for job in found:
        name, _, *rest = _row(job)
        row = [name, f"{short[job.differs]} {job.end}".strip(), *rest]
        style = "red" if job.state == "failed" else ""
        out.add_row(*(Text(cell, style=style) for cell in row))
    return out


def write(directory: str | Path) -> None:
    """Write ``sweep.md``, ``sweep.json`` and, unless the jobs run without pictures, a page and a figure.

    Cheap enough to be called after every job: a job's report is read once. Each file is written atomically.
    """
    from slim.report import figures

    directory = Path(directory)
    found = _told_apart(directory)
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _row(job)) + " |" for job in found]
    text = "# Sweep\n\n" + "\n".join(lines) + "\n"
    text += "\nChannels, params, MACs and time (measured, per batch) are what is left of the dense network's.\n"
    if command := _commands(directory):
        text += f"\n```\n{command}\n```\n"
    if _wants_pictures(found):
        write_atomic(directory / "sweep.html", jobs_page(directory.name, found, command=_commands(directory)))
        if (drawn := figure(found)) is not None:
            write_atomic(directory / "figures" / "sweep.png", figures.png(drawn))
            text += "\n![accuracy against cost](figures/sweep.png)\n"
    write_atomic(directory / "sweep.md", text)
    write_json(directory / "sweep.json", {job.name: _without_arrays(job.record) for job in found})


def _commands(directory: Path) -> str:
    """What the user typed; empty where nobody kept it."""
    path = directory / COMMANDS
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def figure(jobs: Sequence[Job]) -> Figure | None:
    """The metric against MACs kept, one point per finished job; ``None`` when fewer than two have the same both."""
    from slim.report import figures

    points: list[tuple[float, float, str]] = []
    short = _shortened([job.differs for job in jobs])
    for job in jobs:
        dense, thin = ends(job.record)
        left, value = kept(thin, dense, "macs"), formatting.number(thin.get("metric"))
        if left is not None and value is not None:
            metric = metric_of(job.record)
            points.append((100 * left, metric.scaled(value), short[job.differs] or job.name))
    return figures.scatter(points, metric) if len(points) > 1 and one_metric(jobs) else None


def compare(runs: Mapping[str, Mapping[str, Any]], command: str = "") -> str:
    """Several runs side by side, as a page.

    Args:
        runs: Directory of a run -> the content of its report.json.
        command: That made the page.
    """
    found = []
    differs = differences(runs)
    for run, record in runs.items():
        page = Path(run).absolute() / "report.html"
        found.append(Job(run, differs[run], record, page.as_uri() if page.is_file() else ""))
    return jobs_page("Runs side by side", found, command=command)


def differences(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What tells runs apart: the overrides in their commands that not all of them share; else the experiment.

    >>> command = "python train.py +experiment=vgg_slim seed=0 prune.ratio="
    >>> differences({"a": {"command": command + "0.5"}, "b": {"command": command + "0.7"}})
    {'a': 'prune.ratio=0.5', 'b': 'prune.ratio=0.7'}
    """
    given = {run: [word for word in shlex.split(str(record.get("command", ""))) if "=" in word]
             for run, record in runs.items()}  # fmt: skip
    shared = set.intersection(*(set(words) for words in given.values())) if given else set()
    return {
        run: " ".join(word for word in words if word not in shared) or str(runs[run].get("experiment", ""))
        for run, words in given.items()
    }


def _wants_pictures(jobs: Sequence[Job]) -> bool:
    """A run with figures=false has a report that names no page."""
    named = [(job.record.get("paths") or {}).get("page", "") for job in jobs if job.state == "finished"]
    return not named or any(page is not None for page in named)


def _without_arrays(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without a value for every channel, which each job's own report has."""
    return {key: value for key, value in record.items() if key not in ("gammas", "removed")}


def _shortened(cells: list[str]) -> dict[str, str]:
    """``prune.ratio=0.3`` as ``ratio=0.3`` wherever no other key ends in ``ratio``; numbers in four digits."""
    keys = {item.partition("=")[0] for cell in cells for item in cell.split() if "=" in item}
    last = Counter(key.rpartition(".")[2] for key in keys)
    unique = {key: key.rpartition(".")[2] for key in keys if last[key.rpartition(".")[2]] == 1}

    def brief(item: str) -> str:
        key, given, value = item.partition("=")
        with suppress(ValueError):
            value = f"{float(value):.4g}" if "." in value or "e" in value else value
        return f"{unique.get(key, key)}{given}{value}"

    return {cell: " ".join(map(brief, cell.split())) for cell in cells}


def _overrides(folder: Path) -> list[str]:
    """What the command line of the job said, as Hydra kept it: a YAML list; empty where there is none."""
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return []
    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    found = [item for item in items if isinstance(item, str)] if isinstance(items, list) else []
    return [item for item in found if not item.startswith(("hydra.", "output="))]
