"""``python -m slim``: the program ``slim``."""

from __future__ import annotations

import sys

from slim.command.main import program

if __name__ == "__main__":
    sys.exit(program())
