"""Downloads with a timeout that leave no empty folders behind when they fail."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from slim.errors import SlimError

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


def fetch(make: Callable[[bool], object], root: Path, allowed: bool, absent: Callable[[Exception], SlimError]) -> None:
    """Make sure that a data set of torchvision is on disk.

    Args:
        make: Builds the data set with ``download`` as given; raises RuntimeError where files are missing.
        root: Its folder; empty folders that a failed download leaves are removed.
        allowed: Whether missing files may be downloaded.
        absent: From what went wrong to the error that says what to do.

    Raises:
        SlimError: nothing on disk and no way to get it.
    """
    try:
        make(False)
        return
    except RuntimeError as missing:
        if not allowed:
            raise absent(missing) from missing
    except Exception as damaged:
        raise absent(damaged) from damaged
    before = deepest_existing(root)
    try:
        # Some of torchvision's classes print every failed mirror.
        with socket_timeout(), contextlib.redirect_stdout(io.StringIO()):
            make(True)
    except Exception as error:
        # URLError, a checksum that differs, a broken archive, a full disk: all end in the same advice.
        remove_empty(root, before)
        raise absent(error) from error
