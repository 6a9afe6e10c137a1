"""Evaluates a network on a data set: ``python evaluate.py <file or run directory> [data=cifar10] [model=vgg ...]``."""

from __future__ import annotations

import sys

from slim.command.evaluate import main
from slim.command.exits import as_program

if __name__ == "__main__":
    sys.exit(as_program(main))
