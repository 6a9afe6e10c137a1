"""Who works on something in a shared storage, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: Name of its machine.
        pid: Process id there.
        began: When it started, as the system counts; tells it from a later process with the same id.
    """

    host: str
    pid: int
    began: str

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _began(os.getpid()) or "")

    @classmethod
    def read(cls, value: Any) -> Owner | None:
        """Counterpart of :meth:`plain`; ``None`` for what is no owner."""
        if not isinstance(value, Mapping) or set(value) != {"host", "pid", "began"}:
            return None
        return cls(str(value["host"]), int(value["pid"]), str(value["began"]))

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def lives(self) -> bool | None:
        """Whether the process is there; ``None``: it is on another machine, which cannot be seen from here.

        >>> Owner.me().lives(), Owner("elsewhere", 1, "").lives()
        (True, None)
        """
        if self.host != socket.gethostname():
            return None
        now = _began(self.pid)
        return now is not None and now == self.began

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _began(pid: int) -> str | None:
    """When a process of this machine started; ``None``: there is no such process, or only what is left of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The name, in parentheses, may hold anything; then come state (field 3) and, as field 22, the start.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # no /proc: the id has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
