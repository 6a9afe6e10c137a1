"""One more process of a training phase: ``python -m slim.pipeline.rank <run directory> <phase> <pass>``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import slim
from slim.callbacks.signals import Interrupted, Signals
from slim.pipeline.ranks import BEGIN, RankLost, rank
from slim.pipeline.state import State
from slim.pipeline.training import train
from slim.pipeline.workspace import Workspace


def main(directory: Path, name: str, number: int) -> int:
    """Train along with rank 0; nothing is written here."""
    try:
        with Signals() as signals:
            work = Workspace(State.load(directory).config, begun=True)
            if work.settings.trainer.threads is not None:
                torch.set_num_threads(work.settings.trainer.threads)
            network = slim.load(directory / name / BEGIN, work.dense())
            train(work, directory, name, network, signals, number=number)
    except (Interrupted, RankLost) as stop:
        return stop.exit_code  # of which rank 0 knows as much
    except slim.SlimError as error:
        print(f"rank {rank()}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
