"""A progress bar in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """``items``, under rich's progress bar on stderr when that is a terminal and rich is installed."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import track
        except ImportError:
            pass
        else:
            yield from track(items, total=total, description=text, console=Console(stderr=True), transient=True)
            return
    yield from items
