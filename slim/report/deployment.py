"""What was exported: how near every file is to the network, and the ladder from dense fp32 to thin int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slim.report import formatting
from slim.report.metric import metric_of

RUNTIME = " fp32"
"""How the rung ends that speed is compared with: the dense network, in the same runtime as the others."""

LIKED, NOISE = 8, 1.1
"""Runtimes are fast at widths that are multiples of it; times within the factor are equal."""


@dataclass(frozen=True)
class Section:
    """A table as text, for a page of any kind.

    Attributes:
        title: Its heading.
        note: What its numbers mean.
        head: Of the columns; the first is text, the others are numbers.
        rows: As many cells each.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: list[list[str]]


def sections(record: Mapping[str, Any]) -> list[Section]:
    """The export part of a record: files, and the ladder; empty where nothing was exported."""
    export = record.get("export") or {}
    found = [_files(record, export["files"])] if export.get("files") else []
    return [*found, _ladder(record, export["ladder"])] if export.get("ladder") else found


def markdown(record: Mapping[str, Any]) -> list[str]:
    """:func:`sections` in Markdown."""
    return [part for each in sections(record) for part in (f"## {each.title}", each.note, _grid(each.head, each.rows))]


def slower(record: Mapping[str, Any]) -> list[str]:
    """A line for every batch size and format at which the thin file is slower than the dense one, and what helps."""
    ladder = {row["name"]: row for row in (record.get("export") or {}).get("ladder") or ()}
    odd = any(after != before and after % LIKED for before, after in (record.get("widths") or {}).values())
    measured = any("round_to=auto is" in note for note in record.get("notes") or ())
    remedy = (
        f"prune.round_to={LIKED} avoids them" if measured else "prune.round_to=auto finds those that the runtime likes"
    )
    advice = f" Some widths are no multiples of {LIKED}: {remedy}."
    lines = []
    for batch, kind in ((1, "fp32"), (64, "fp32"), (1, "int8"), (64, "int8")):
        dense, thin = (ladder.get(f"{name} {kind}", {}).get(f"latency_ms_b{batch}") for name in ("dense", "thin"))
        if dense and thin and thin > NOISE * dense:
            times = f"{thin / dense:.2f} x the time of the dense one"
            lines.append(
                f"Batch {batch} in ONNX Runtime: the thin network in {kind} takes {times}.{advice if odd else ''}"
            )
    return lines


def _files(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Section:
    metric = metric_of(record)
    rows = []
    for name, row in files.items():
        cells = [name, row["file"], formatting.count(row["bytes"]), f"{row['difference']:.1e}"]
        agreement = formatting.MISSING if row["agreement"] is None else f"{100 * row['agreement']:.2f} %"
        rows.append([*cells, agreement, metric.shown(row["reference"]), metric.shown(row["metric"])])
    images = next(iter(files.values()))["images"]
    head = ("format", "file", "bytes", "largest difference", "same prediction", f"{metric.name}: network", "file ")
    note = f"Compared with the network on {images} held-out images; differences as a share of the largest output."
    return Section("Export", note, head, rows)


def _ladder(record: Mapping[str, Any], ladder: list[Mapping[str, Any]]) -> Section:
    metric = metric_of(record)
    base: Mapping[str, Any] = next((row for row in ladder if row["name"].endswith(RUNTIME)), {})
    rows = []
    for row in ladder:
        cells = [
            row["name"],
            metric.shown(row["metric"]),
            formatting.count(row["bytes"]) if row["bytes"] else formatting.MISSING,
        ]
        for batch in (1, 64):
            key = f"latency_ms_b{batch}"
            cells += [f"{row[key]:.3g}", f"{base[key] / row[key]:.2f} x" if base else formatting.MISSING]
        rows.append(cells)
    head = ("network", f"{metric.name} (test)", "bytes", "ms, batch 1", "faster", "ms, batch 64", "faster ")
    note = "Medians on the CPU, all rungs in turns; eager is PyTorch, the others run in ONNX Runtime."
    return Section("From dense fp32 to thin int8", " ".join([note, *slower(record)]), head, rows)


def _grid(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(head), ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
