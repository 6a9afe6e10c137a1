"""What experiments write into their README.md: a table, between two marks that stay, with deviations over the seeds."""

from __future__ import annotations

import statistics
from pathlib import Path

from slim.files import write_atomic


def fill(page: Path, marks: tuple[str, str], body: str) -> None:
    """Put ``body`` between the first and the second mark of ``page``.

    Raises:
        ValueError: A mark is not in the page, which stays as it is.
    """
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"{page} must have the marks {' and '.join(marks)}. Put them where the table belongs.")
    write_atomic(page, f"{before}{start}\n\n{body}\n\n{end}{after}")


def spread(values: list[float], form: str = ".2f") -> str:
    """Mean, and the deviation of several; nothing of none.

    >>> spread([1.0, 2.0])
    '1.50 ± 0.71'
    """
    if not values:
        return ""
    return f"{statistics.mean(values):{form}}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")
