"""One self-contained page: the style, the libraries and the data stand in the file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from slim.files import to_json

Figure = dict[str, Any]
"""``data`` and ``layout`` as plotly.js takes them; colours may be names of the style sheet, such as ``--thin``."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What is shown, as HTML.
        sort: What the column is sorted by; ``None``: the text.
        is_text: Whether it is flush left.
    """

    text: str
    sort: float | None = None
    is_text: bool = False


def page(title: str, parts: Sequence[str], figures: Mapping[str, Figure], report: Any) -> str:
    """The whole file.

    Args:
        title: Of the window.
        parts: HTML, in order; an empty one is left out.
        figures: Id of an element -> figure that is drawn into it.
        report: The numbers on the page, as JSON in the element ``report``.
    """
    scripts = [f"<script>{asset(name)}</script>" for name in ("plotly-basic.min.js", "tablesort.min.js", "page.js")]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{asset('page.css')}</style>",
            "</head>",
            "<body>",
            *(part for part in parts if part),
            f'<script type="application/json" id="report">{embedded(report)}</script>',
            f'<script type="application/json" id="figures">{embedded(figures)}</script>',
            *scripts,
            "</body>",
            "</html>",
            "",
        ]
    )


@cache
def asset(name: str) -> str:
    """A file that is part of every page."""
    return resources.files("slim.report.html").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def escape(text: Any) -> str:
    """Any value as HTML."""
    return html.escape(str(text))


def embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in; what is no number becomes null.

    >>> embedded({"a": "</script>", "b": float("nan")})
    '{"a":"<\\\\/script>","b":null}'
    """
    return to_json(value, indent=None, separators=(",", ":")).replace("</", "<\\/")


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False, marks: Any = None) -> str:
    """A table.

    Args:
        head: Of the columns.
        rows: Cells.
        sortable: By a click on a head.
        marks: Number of a row -> its class.
    """
    numeric = [all(row[index].sort is not None for row in rows) for index in range(len(head))]
    texts = [any(row[index].is_text for row in rows) for index in range(len(head))]
    lines = ['<div class="wide">', f"<table{' class=sortable' if sortable else ''}>", "<thead><tr>"]
    for name, is_number, is_text in zip(head, numeric, texts, strict=True):
        method = ' data-sort-method="number"' if sortable and is_number else ""
        lines.append(f"<th{method}{' class=text' if is_text else ''}>{escape(name)}</th>")
    lines.append("</tr></thead><tbody>")
    for number, row in enumerate(rows):
        mark = (marks or {}).get(number)
        lines.append(f"<tr{f' class={mark}' if mark else ''}>{''.join(_cell(cell) for cell in row)}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where that is empty."""
    inside = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def place(figure: str, figures: Mapping[str, Figure]) -> str:
    """Where a figure is drawn, where there is one."""
    if figure not in figures:
        return ""
    return f'<div id="{figure}" style="height:{figures[figure]["layout"]["height"]}px"></div>'


def _cell(cell: Cell) -> str:
    # Without exponents, which the sorting library does not read.
    sort = "" if cell.sort is None else f' data-sort="{cell.sort:.9f}"'
    return f"<td{sort}{' class=text' if cell.is_text else ''}>{cell.text}</td>"
