"""Downloads that end: in files, or in an error and no trace."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_PATIENCE = 20.0  # seconds without an answer before a download counts as impossible


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Let a network that swallows packets fail instead of hang."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def existing(root: Path) -> Path:
    """The deepest folder on the way to ``root`` that is already there."""
    return next(folder for folder in (root, *root.parents) if folder.exists())


def remove_empty(root: Path, keep: Path) -> None:
    """Remove the empty folders that a failed download left below ``keep``."""
    for folder, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            if Path(folder) != keep:
                os.rmdir(folder)
    for parent in root.parents:
        if parent == keep or keep not in parent.parents:
            return
        with contextlib.suppress(OSError):
            os.rmdir(parent)
