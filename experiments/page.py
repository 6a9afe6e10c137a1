"""What experiments write into their README.md: a table, between two marks that stay."""

from __future__ import annotations

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
