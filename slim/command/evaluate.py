"""``slim evaluate``: a network on a data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from slim.command import run
from slim.command.compose import quoted
from slim.command.exits import guarded

HELP = """usage: slim evaluate <file or run directory> [key=value ...]

The metric of a network on test data, and its size, as JSON:
  slim evaluate outputs/vgg_slim/<id>                     as the run was configured
  slim evaluate thin.safetensors data=cifar10             a network that its file describes
  slim evaluate weights.pt data=cifar10 model=vgg         any other weights
Keys and groups are those of slim train: see slim train --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print accuracy and size as JSON; exit codes as in :func:`slim.command.run.main`.

    Inside a run directory the model and the data are those of the run, unless overrides say otherwise.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["--help"], ["-h"]):
        print(HELP)
        return 0
    if not argv or argv[0].startswith("-") or ("=" in argv[0] and not Path(argv[0]).exists()):
        print(
            f"evaluate needs a file or a run directory first. Got {' '.join(argv) or 'nothing'}. See README.md.",
            file=sys.stderr,
        )
        return 2
    path, overrides = Path(argv[0]), argv[1:]
    return guarded(lambda: _evaluate(path, overrides), "debug=true" in overrides)


def _evaluate(path: Path, overrides: list[str]) -> int:
    from slim.errors import SlimError

    if not path.exists():
        raise SlimError(f"The network must exist. Got {path}. Give an artifact, a checkpoint or a run directory.")
    return run.main([*overrides, "task=evaluate", f"checkpoint={quoted(path.absolute())}"])
