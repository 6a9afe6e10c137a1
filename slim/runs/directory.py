"""The run directory: refused before anything is built, made when everything was checked."""

from __future__ import annotations

import os
from pathlib import Path

from slim.errors import SlimError


def check_writable(directory: Path) -> None:
    """Refuse a run directory that cannot be made, without making it.

    Raises:
        SlimError: Its nearest existing parent is no folder, or not writable.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise SlimError(
            f"The output directory must be writable. Got output={directory} ({place} is not). Set output=<dir>."
        )


def make(directory: Path) -> None:
    """Make a directory and its parents.

    Raises:
        SlimError: That is not possible.
    """
    check_writable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimError(
            f"The output directory must be writable. Got output={directory} ({error.strerror}). Set output=<dir>."
        ) from error
