"""``make chaos``: 25 kills at random events, runs ten times longer and shorter too; exit code 1 if one bit differs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from experiments.chaos.harness import LENGTHS, TINY, chaos

    different = 0
    for length, changes in LENGTHS.items():
        kills, began = options.kills if length == "tiny" else 3, time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcome = chaos(Path(folder), kills, options.seed, (*TINY, *changes))
        for event, count in sorted(Counter(outcome.kills).items()):
            print(f"{count:4} kills at {event}")
        print(
            f"{length}: {len(outcome.kills)} kills, {outcome.victims} victims, {time.monotonic() - began:.0f} s, "
            f"{len(outcome.differences)} differences {outcome.differences[:5]}",
            flush=True,
        )
        different += len(outcome.differences)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
