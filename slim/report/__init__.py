"""What a run leaves for people: a table, report.md, figures. Reads the record of a run (report.json), nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def write(run_dir: str | Path, record: Mapping[str, Any], pictures: bool = True) -> None:
    """Write ``report.md``, ``report.html`` and ``figures/*.png`` into a run directory, each file atomically.

    Args:
        run_dir: The run directory.
        record: The content of its report.json; what it lacks is left out of the report.
        pictures: Whether to draw figures, which takes seconds, and the page, which is a file of over a megabyte.
    """
    from slim.report import figures, html, markdown

    run_dir = Path(run_dir)
    drawn = figures.all_figures(record) if pictures else {}
    for name, figure in drawn.items():
        write_atomic(run_dir / "figures" / f"{name}.png", figures.png(figure))
    if pictures:
        write_atomic(run_dir / "report.html", html.run_page(record))
    write_atomic(run_dir / "report.md", markdown.render(record, list(drawn)))


def table(record: Mapping[str, Any]) -> Table:
    """The final table of a run. See :func:`slim.report.tables.table`."""
    from slim.report import tables

    return tables.table(record)


def show(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the final table of a run and where everything lies. See :func:`slim.report.tables.show`."""
    from slim.report import tables

    tables.show(record, console)


__all__ = ["show", "table", "write"]
