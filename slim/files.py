"""Atomic file writing (temporary file, flush, fsync, rename) and safe reading."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from slim.errors import RunFailed, SlimError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of the errors of a disk without room."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def write_atomic(path: str | Path, content: bytes | str | Callable[[IO[bytes]], object]) -> Path:
    """Write ``content`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: The final path. Missing folders are created. A device, a pipe, or what a link points to is written to;
            the link stays.
        content: Bytes, text (UTF-8; what it cannot say of a file's name is escaped), or a function that writes to the
            binary file it is given.

    Returns:
        ``path``.

    Raises:
        RunFailed: The disk is full or failed while writing; the previous file is whole and no part file is left.
        SlimError: The place cannot be written to at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "a" / "b.txt", "whole").read_text()
    'whole'
    """
    path = Path(path)
    place = Path(os.path.realpath(path))  # /dev/stdout is a link, to a file where the shell says so
    # The process id separates two writers; the dot hides the part file from globs for results.
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                _fill(file, content)
            return path
        with part.open("wb") as file:
            _fill(file, content)
            os.fsync(file.fileno())
        os.replace(part, place)
    except OSError as error:
        _remove(part)
        raise write_error(error, path) from error
    except BaseException as error:
        _remove(part)
        # torch.save reports a failed write as a RuntimeError; the cause tells whether the disk was full.
        cause = error.__cause__ or error.__context__
        if isinstance(error, RuntimeError) and (isinstance(cause, OSError) or "unexpected pos" in str(error)):
            raise write_error(
                cause if isinstance(cause, OSError) else OSError(errno.ENOSPC, str(error)), path
            ) from error
        raise
    _sync_folder(place.parent)
    return path


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):  # where nothing can be written, it is not there, and cannot be looked for
        part.unlink()


def _fill(file: IO[bytes], content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    file.flush()


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as readable JSON, atomically. See :func:`write_atomic` and :func:`to_json`."""
    return write_atomic(path, to_json(value) + "\n")


def to_json(value: Any, **options: Any) -> str:
    """``value`` as JSON, readable unless ``options`` of ``json.dumps`` say otherwise; what is no number becomes null.

    A metric may be NaN, of images without anything to find, and JSON has no word for it.

    >>> to_json({"a": [float("nan"), 1.5]}, indent=None)
    '{"a": [null, 1.5]}'
    """
    return json.dumps(_finite(value), **{"indent": 2, "allow_nan": False, **options})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path, *, what: str = "file", limit: int = 64 * 2**20) -> Any:
    """Read a JSON file written by slim.

    Raises:
        SlimError: Missing, larger than ``limit`` bytes, or no JSON.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > limit:
            raise SlimError(f"A {what} is at most {limit} bytes. Got {size} ({path}). Give the file that slim wrote.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimError(f"A {what} must be readable. Got {path} ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise SlimError(f"A {what} must be JSON. Got {path} ({error}). Give the file that slim wrote.") from error


def read_torch(path: str | Path, *, what: str = "file") -> Any:
    """Read a file that ``torch.save`` wrote, onto the CPU: tensors and plain data only, no code.

    Raises:
        SlimError: Missing, damaged, compressed (a decompression bomb), or it holds other objects.
    """
    import torch

    path = Path(path)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch stores without compression; larger content is a decompression bomb.
                if sum(item.file_size for item in archive.infolist()) > size:
                    raise ValueError("its content claims to be larger than the file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious file may raise anything
        if objects := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
            raise SlimError(
                f"A {what} must hold tensors and plain data alone. Got {path}, which holds a {objects[1]} that is not "
                "unpickled. Where it was made save its weights alone: torch.save(model.state_dict(), path)."
            ) from None
        # torch's advice to try weights_only=False is the last thing a user should follow.
        reason = str(error).split("\n", 1)[0].split(". In PyTorch", 1)[0][:160]
        raise SlimError(
            f"A {what} must be a whole file of tensors and plain data. Got {path} ({type(error).__name__}: {reason}). "
            "Give the file that was saved."
        ) from None


def lock(handle: int, *, wait: bool = False) -> bool:
    """Lock an open file for this process, until it is closed or the process ends, however it ends.

    Args:
        handle: Of the file.
        wait: For whoever holds it.

    Returns:
        Whether nobody else holds it. On a file system without locks, such as some of clusters, nobody does.
    """
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def user_cache() -> Path:
    """Where what can be made again is kept: in ``$XDG_CACHE_HOME``, or in the user's home.

    For a user without one, such as a bare number in a container, a place where nothing is found and nothing can be
    written.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slim"
    except RuntimeError:
        return Path(os.devnull) / "slim"


def write_error(error: OSError, path: Path) -> SlimError:
    """What a user is told where ``path`` could not be written."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return RunFailed(
            f"The disk must have room for {path.name}. Got {reason} ({path}). Free space; the old file is whole."
        )
    return SlimError(f"A file must be writable. Got {path} ({reason}). Choose another place for it.")


def _sync_folder(folder: Path) -> None:
    """Sync the folder, which makes the rename durable; file systems without folder sync are not an error."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
