"""Text tables."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """One line per row; columns are aligned: the first to the left, the last as it is, the others to the right."""
    last = len(rows[0]) - 1
    widths = [max(len(row[i]) for row in rows) for i in range(last)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, last)), row[last]],
        ).rstrip()
        for row in rows
    ]


def with_prefix(number: int) -> str:
    """A count with a metric prefix.

    >>> with_prefix(1234), with_prefix(950)
    ('1.23 k', '950')
    """
    for prefix, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {prefix}"
    return str(number)
