"""Downloads with a timeout that leave no empty folders behind when they fail."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_TIMEOUT = 20.0  # seconds without an answer before a download counts as impossible


@contextlib.contextmanager
def socket_timeout() -> Iterator[None]:
    """Set a default socket timeout, so that a network without answers fails instead of hanging."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def deepest_existing(root: Path) -> Path:
    """The deepest folder on the path to ``root`` that exists."""
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
