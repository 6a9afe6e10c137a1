"""SIGTERM, SIGUSR1 and Ctrl-C: leave at the next safe moment, with an exit code of their own."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

CODES = {"SIGTERM": 143, "SIGUSR1": 138, "SIGINT": 130}
"""Exit codes: 128 + the signal's number, as a shell would report it."""


class Interrupted(BaseException):
    """The run was told to stop, and stopped where it can go on. Exits with the code of ``CODES``.

    A BaseException: whoever tries something and goes on with ``except Exception`` where it fails, such as a trace or an
    exporter, would take it for a failure of that.
    """

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(
            message or f"The run must not be interrupted to end. Got {name}. Go on with resume=<run directory>."
        )
        self.name = name
        self.exit_code = CODES[name]


class Signals:
    """Turns signals into :class:`Interrupted`, at once or, while ``waiting``, keeps them in ``received``.

    A training loop sets ``waiting`` and looks at ``received`` between steps, where a checkpoint can be written. A
    second signal does not wait any longer. Outside the main thread it does nothing, for Python delivers signals there.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.received: str | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def install(self) -> None:
        """Take the signals; again after somebody else (Lightning's own handlers) took them."""
        if threading.current_thread() is threading.main_thread():
            for name in CODES:
                number = getattr(signal, name)
                before = signal.getsignal(number)
                # A process started with a signal ignored (nohup, background jobs) keeps ignoring it.
                if before != self._handle and before != signal.SIG_IGN:
                    self._before.setdefault(number, before)
                    signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker, whose parent will end it
        name = signal.Signals(number).name
        again = self.received is not None
        self.received = name
        if not self.waiting or again:
            raise Interrupted(name)

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
