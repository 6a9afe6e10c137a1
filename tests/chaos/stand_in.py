"""A stand-in for a run: it writes ten files, and goes on with the first that is missing."""

from __future__ import annotations

import time
from pathlib import Path

from experiments.chaos import events
from experiments.chaos.harness import Outcome, Program
from slim.files import write_atomic, write_json


def directory_of(argv: list[str]) -> Path:
    return Path(next(item.partition("=")[2] for item in argv if item.startswith(("resume=", "hydra.run.dir="))))


def ten_files(argv: list[str]) -> int:
    directory = directory_of(argv)
    state = {"config": {"phases": ["sparse"]}, "phases": {}, "finished": False}
    if not (directory / "state.json").is_file():
        write_json(directory / "state.json", state)
    for number in range(10):
        if not (directory / f"{number}.txt").is_file():
            write_atomic(directory / f"{number}.txt", "0123456789")
    write_json(directory / "state.json", {**state, "finished": True})
    return 0


def compare_files(whole: Path, killed: Path, outcome: Outcome) -> None:
    for path in whole.glob("*.txt"):
        if path.read_bytes() != (killed / path.name).read_bytes():
            outcome.differences.append(path.name)


def without_kill(argv: list[str]) -> int:
    """The kill never comes, as on a machine that is faster than the aim."""
    events.kill = lambda: None
    return ten_files(argv)


def not_atomic(argv: list[str]) -> int:
    """Takes what a killed process left behind for the file it was to become."""
    for part in directory_of(argv).glob(".*.txt.*.part"):
        part.rename(part.with_name(part.name.split(".")[1] + ".txt"))
    return ten_files(argv)


def hanging(argv: list[str]) -> int:
    """Far longer than the limit of the harness."""
    time.sleep(300)
    return 0


STAND_IN = Program(ten_files, compare_files)
