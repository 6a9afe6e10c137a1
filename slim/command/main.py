"""The program ``slim``: its commands, each a file beside this one."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from slim.command.exits import as_program, guarded
from slim.errors import SlimError, nearest
from slim.files import to_json
from slim.importing import seldom_collected

COMMANDS = {
    "train": "Train, cut and fine-tune a network, as configured: slim train +experiment=vgg_slim",
    "evaluate": "Evaluate a network on a data set: slim evaluate <file or run directory> [data=cifar10]",
    "inspect": "Show a network's channel groups, widths and MACs, what may go, and why the rest must stay",
    "prune": "Cut a network to a budget and write it as one safe file",
    "bench": "Measure networks in turns, beside the dense network they were made from",
    "export": "Write a network for a runtime: ONNX, PyTorch, int8",
    "report": "Show the report of a run, or compare several",
}
CONFIGURED = ("train", "evaluate")
"""Their arguments are overrides of a configuration."""


def program() -> int:
    """The entry point: runs the command line of this process. Users' own modules are found in the current folder."""
    with suppress(FileNotFoundError):  # a folder that is gone
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last: a file there must not stand in for an installed package
    return as_program(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``slim <command> ...`` (``argv`` without the program's name); returns the exit code.

    0: done. 1: it failed. 2: bad input, nothing was written. 130, 138, 143: stopped by Ctrl-C, SIGUSR1, SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name in ("--version", "--completion", "--complete"):
        return guarded(lambda: _about(name, rest))
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        print(f"A command of slim must be known. Got {name}. {hint} See slim --help.", file=sys.stderr)
        return 2
    return guarded(lambda: _command(name, rest), debug="--debug" in rest, switch="--debug")


def overview() -> str:
    """What ``slim --help`` says."""
    lines = [f"  {name:<9} {what}" for name, what in COMMANDS.items()]
    head = ["usage: slim <command> ...", "", "Network Slimming: train a network so that it comes out thin.", ""]
    return "\n".join([*head, *lines, "", "slim <command> --help says more. slim --version, slim --completion bash."])


def _about(name: str, rest: list[str]) -> int:
    from importlib.metadata import version

    from slim.command.completion import SCRIPTS, complete

    if name == "--completion" and rest[:1] not in [[shell] for shell in SCRIPTS]:
        raise SlimError(f"A shell must be one of {', '.join(SCRIPTS)}. Got {' '.join(rest)!r}. Give one.")
    text = {
        "--version": lambda: version("slim-channels"),
        "--completion": lambda: SCRIPTS[rest[0]],
        "--complete": lambda: complete(COMMANDS),
    }
    print(text[name]())
    return 0


def _command(name: str, rest: list[str]) -> int:
    """Import the command, which takes seconds, and run it."""
    with seldom_collected():
        command = importlib.import_module(f"slim.command.{'run' if name == 'train' else name}")
    return int(command.main(rest)) if name in CONFIGURED else _perform(name, command, rest)


def _perform(name: str, command: Any, argv: list[str]) -> int:
    """Parse, perform and show: as text for people, or the same as JSON."""
    parser = _Parser(
        prog=f"slim {name}",
        description=str(command.__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    found = command.perform(args)
    print(to_json(found) if args.json else command.text(found))
    return 0


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise SlimError(f"{self.prog} must be called as its help says. Got: {message}. See {self.prog} --help.")
