"""The waits on another process that tests may do, bounded."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

BOUND = 300.0
"""Seconds after which a test gives up: far more than a busy machine needs, less than a test's own limit."""


def until(holds: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
    """Wait for an event of another process that leaves nothing but a file or a state to look at.

    Args:
        holds: Whether it has come.
        alive: Whether it can still come.

    Raises:
        AssertionError: The process ended before, or the bound is reached.
    """
    deadline = time.monotonic() + BOUND
    while not holds():
        assert alive(), "the process ended before what the test waits for"
        assert time.monotonic() < deadline, f"nothing within {BOUND} s"
        time.sleep(0.02)


def ended(process: BaseProcess, within: float = BOUND) -> int | None:
    """The exit code of a process that must end ``within`` so many seconds; None, and the process killed, if not."""
    process.join(within)
    code = process.exitcode
    if code is None:
        process.kill()
    return code
