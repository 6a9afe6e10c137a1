"""How a command ends: one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


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
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = str(error), int(getattr(error, "exit_code", 0))
        if not code:
            text = " ".join(str(error).split())[:300]
            line, code = f"The run failed. Got {type(error).__name__}: {text}. Add {switch} for the traceback.", 1
    print(line, file=sys.stderr, flush=True)
    if lines is not None:
        lines.append(line)
    return code


def as_program(action: Callable[[], int]) -> int:
    """Run ``action``, whose reader may have seen enough (``| head``): that is no failure, and nothing to talk about."""
    try:
        code = action()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0
