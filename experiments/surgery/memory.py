"""Peak resident memory of a stretch of code, from the kernel's own high-water mark (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_MEBI = 2**20


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


class Peak:
    """Highest resident memory inside the ``with`` block above what it began with, in MiB; None where it cannot be read.

    torch's tensors do not pass through Python's allocator, so tracemalloc would not see them. Memory that the process
    has freed but not given back would hide what the block needs: glibc is asked to return it first.
    """

    mebibytes: float | None = None

    def __enter__(self) -> Peak:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the old high-water mark
            self._before: int | None = _status("VmRSS")
        except (OSError, LookupError):
            self._before = None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            self.mebibytes = max(0, _status("VmHWM") - self._before) / _MEBI
