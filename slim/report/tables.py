"""The table a run ends with, as cells (for Markdown) and as a rich table (for the terminal)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slim.report import deployment, formatting
from slim.report.metric import metric_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Heads of the table's columns; the second is the run's metric."""
    return ("network", metric_of(record).name, "channels", "params", "MACs", "FLOPs", "ms, batch 1", "ms, batch 64")


@dataclass(frozen=True)
class Cell:
    """A value as people read it and how far it is from the dense network's."""

    value: str
    change: str = ""


def cells(record: Mapping[str, Any]) -> list[list[Cell]]:
    """One list of cells per network of the run, in the order of :func:`columns`.

    Changes are against the dense network, or, in a run that never trained one, against the sparse network (same shape).
    """
    rows: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
    base = next((rows[name] for name in ("dense", "sparse") if rows.get(name)), {})
    known = [name for name in formatting.LABELS if rows.get(name)] + sorted(set(rows) - set(formatting.LABELS))
    # Without a baseline phase the dense row is a shape; the first value is the sparse network's.
    trained = next((rows[name] for name in known if (rows[name] or {}).get("metric") is not None), {})
    out, metric = [], metric_of(record)
    for name in known:
        row = rows[name] or {}
        macs = formatting.number(row.get("macs"))
        # Two runs of one network differ by noise alone; a change is only shown where the shape changed.
        thinner = row.get("macs") != base.get("macs") or row.get("params") != base.get("params")
        moved = metric.change(row.get("metric"), trained.get("metric")) if row is not trained else ""
        out.append(
            [
                Cell(formatting.LABELS.get(name, name)),
                Cell(metric.shown(row.get("metric")), moved),
                *(
                    Cell(formatting.count(row.get(key)), formatting.change(row.get(key), base.get(key)))
                    for key in ("channels", "params", "macs")
                ),
                Cell(
                    formatting.count(None if macs is None else 2 * macs),
                    formatting.change(row.get("macs"), base.get("macs")),
                ),
                *(
                    Cell(
                        formatting.millis(row.get(key)).removesuffix(" ms"),
                        formatting.change(row.get(key), base.get(key)) if thinner else "",
                    )
                    for key in ("latency_ms_b1", "latency_ms_b64")
                ),
            ]
        )
    return out


def input_note(record: Mapping[str, Any]) -> str:
    """What MACs and FLOPs in the table mean."""
    shape = record.get("input_shape") or "the example input"
    return f"MACs of one forward at {shape}; FLOPs = 2 x MACs. Latency is measured, the median of alternating runs."


def tensorboard_command(record: Mapping[str, Any]) -> str | None:
    """The command that shows the run's curves, ready to paste."""
    paths = record.get("paths") or {}
    logdir = paths.get("tensorboard")
    return None if logdir is None else f"tensorboard --logdir {shlex.quote(str(logdir))}"


def table(record: Mapping[str, Any], *, caption: bool = True) -> Table:
    """The final table: networks x metric, channels, parameters, MACs, FLOPs, latency; below it where everything lies.

    Under each number stands its change against the dense network. Fits a terminal of 80 columns.

    Args:
        record: the run, as in report.json.
        caption: put the footer below the table. :func:`show` prints it apart, so that no path is broken over lines.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = str(record.get("experiment") or "slim")
    out = Table(
        title=Text(title, style="bold"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption_justify="left",
    )
    for index, name in enumerate(columns(record)):
        out.add_column(name.replace(", ", "\n"), justify="left" if index == 0 else "right", no_wrap=True)
    for row in cells(record):
        shown = []
        for index, cell in enumerate(row):
            text = Text(cell.value, style="bold" if index == 0 else "")
            if cell.change:
                text.append("\n" + cell.change, style="dim")
            shown.append(text)
        out.add_row(*shown)
    if caption:
        out.caption = Text("\n".join(footer(record)), style="dim", overflow="fold")
    return out


def show(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table and, unbroken, the lines below it."""
    console = console or terminal()
    console.print(table(record, caption=False))
    for line in footer(record):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def terminal() -> Console:
    """Standard output. That nobody reads it is a BrokenPipeError; Rich would end the process with code 1."""
    from rich.console import Console

    def nobody_reads() -> None:
        raise BrokenPipeError

    console = Console()
    console.on_broken_pipe = nobody_reads  # type: ignore[method-assign]
    return console


def footer(record: Mapping[str, Any]) -> list[str]:
    """The lines below the table: what the numbers mean, and where the artifact, the report and the curves are."""
    lines = [input_note(record)]
    lines += [*(str(line) for line in (record.get("latency") or {}).values()), *deployment.slower(record)]
    paths = record.get("paths") or {}
    lines += [
        f"{label:<10}{paths[key]}"
        for key, label in (("artifact", "artifact"), ("report", "report"), ("page", "page"))
        if paths.get(key)
    ]
    command = tensorboard_command(record)
    return lines + ([f"{'curves':<10}{command}"] if command else [])
