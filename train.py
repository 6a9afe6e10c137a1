"""Trains a network so that it comes out thin: ``python train.py +experiment=vgg_slim``."""

from __future__ import annotations

import sys

from slim.command.exits import as_program
from slim.command.run import main

if __name__ == "__main__":
    sys.exit(as_program(main))
