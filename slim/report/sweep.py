"""One table over the jobs of a multirun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.errors import SlimError
from slim.files import read_json, write_atomic
from slim.report import words

if TYPE_CHECKING:
    from rich.table import Table

HEAD = ("job", "what differs", "dense", "thin", "channels", "params", "MACs", "ms, batch 1")


def jobs(directory: str | Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The records of a sweep's jobs, by folder name, in the order of their numbers."""
    found = []
    for folder in sorted(Path(directory).iterdir(), key=lambda p: (len(p.name), p.name)):
        if (folder / "report.json").is_file():
            try:
                found.append((folder.name, read_json(folder / "report.json", what="report")))
            except SlimError as error:
                found.append((folder.name, {"status": "failed", "error": str(error)}))
    return found


def rows(directory: str | Path) -> list[list[str]]:
    """One row of text per job, in the order of ``HEAD``; a failed job says why."""
    out = []
    for name, record in jobs(directory):
        overrides = _overrides(Path(directory) / name)
        if record.get("status") == "failed":
            out.append([name, overrides, "failed", str(record.get("error", ""))[:120], *[words.MISSING] * 4])
            continue
        networks = record.get("rows") or {}
        dense = networks.get("dense") or networks.get("sparse") or {}
        thin: Mapping[str, Any] = next((networks[k] for k in reversed(words.LABELS) if networks.get(k)), {})
        out.append(
            [
                name,
                overrides,
                words.percent(dense.get("accuracy")),
                words.percent(thin.get("accuracy")),
                *(
                    f"{words.count(thin.get(k))} {words.change(thin.get(k), dense.get(k))}".strip()
                    for k in ("channels", "params", "macs")
                ),
                words.millis(thin.get("latency_ms_b1")).removesuffix(" ms"),
            ]
        )
    return out


def table(directory: str | Path) -> Table:
    """The sweep as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(title=Text(f"sweep {directory}", style="bold"), box=box.SIMPLE_HEAD)
    for index, name in enumerate(HEAD):
        out.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for row in rows(directory):
        out.add_row(*(Text(cell, style="red" if "failed" in row[:3] else "") for cell in row))
    return out


def write(directory: str | Path) -> None:
    """Write ``sweep.md`` and ``sweep.json`` beside the jobs."""
    directory = Path(directory)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(directory)]
    write_atomic(directory / "sweep.md", "# Sweep\n\n" + "\n".join(lines) + "\n")
    records = {name: dict(record) for name, record in jobs(directory)}
    write_atomic(directory / "sweep.json", json.dumps(records, indent=2) + "\n")


def _overrides(folder: Path) -> str:
    """What the command line of the job said beyond the experiment, as Hydra kept it."""
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return ""
    lines = [line.removeprefix("- ").strip().strip("'\"") for line in path.read_text().splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("+experiment", "hydra.", "[]", "output")))
