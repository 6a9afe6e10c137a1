"""``make chaos``: 25 kills at random moments; exit code 1 if one bit of the outcome differs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds of a training phase at most before a kill")
    options = parser.parse_args()
    # Everything heavy is imported before the first fork, so that kills hit work and not imports.
    import pytorch_lightning  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import slim.runs.phases  # noqa: F401
    from experiments.chaos.harness import chaos

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outcome = chaos(Path(folder), options.kills, options.seed, longest=options.longest)
    for moment, count in Counter(outcome.kills).most_common():
        print(f"{count:4} kills in {moment}")
    print(f"{len(outcome.kills)} kills, {len(outcome.differences)} differences {outcome.differences[:5]}")
    return 1 if outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main())
