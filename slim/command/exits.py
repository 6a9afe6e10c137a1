"""How a command ends: one line on stderr and an exit code."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from slim.errors import of_worker
from slim.runs.signals import Interrupted


def guarded(
    action: Callable[[], int], debug: bool = False, lines: list[str] | None = None, switch: str = "debug=true"
) -> int:
    """Run ``action``; any failure becomes one line on stderr (and in ``lines``) and an exit code.

    Args:
        action: Returns an exit code.
        debug: Also print the traceback.
        lines: Receives the line.
        switch: What a user adds to the command line for ``debug``.
    """
    try:
        return action()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        line, code = "Stopped by Ctrl-C before anything began.", 130
    except (Exception, Interrupted) as error:
        if debug:
            traceback.print_exc()
        line, code = str(error), int(getattr(error, "exit_code", 0))
        if not code:
            text = " ".join(of_worker(str(error)).split())[:300]
            line, code = f"The run failed. Got {type(error).__name__}: {text}. Add {switch} for the traceback.", 1
    with suppress(OSError):  # nobody reads it: the code tells
        print(line, file=sys.stderr, flush=True)
    if lines is not None:
        lines.append(line)
    return code


def as_program(action: Callable[[], int]) -> int:
    """Run ``action``, which is what this process is for; returns the code that it must exit with.

    A reader that has seen enough (``| head``) is no failure, and nothing to talk about.
    """
    for name in ("stdout", "stderr"):
        # Closed by who started the program: what is said would go to the other, or to a file that gets its number.
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: no terminal fails a run that is done
    codes: list[int] = []
    atexit.register(_end, codes)  # registered first, so called last
    try:
        codes.append(action())
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed once more in the end
        codes.append(0)
    return codes[0]


def _end(codes: list[int]) -> None:
    """End with the first of ``codes``, if any: at once, as Python would take seconds to free half a million objects."""
    if not codes:
        return
    for each in gc.get_objects():
        if issubclass(type(each), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with suppress(OSError, ValueError):  # closed, or its reader is gone
                each.flush()
    os._exit(codes[0])
