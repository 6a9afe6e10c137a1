"""The jobs of a sweep directory: each has a folder of its own, which its overrides find again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim.errors import SlimError
from slim.files import lock, read_json, write_atomic, write_json
from slim.report import sweep

CHANGES_NOTHING = (
    *("output", "debug", "figures", "latency_seconds", "resume", "logger"),
    *("trainer.progress", "trainer.log_every", "trainer.checkpoint_every"),
)
"""Keys that leave a job the same job, as what is below them: where and how it is shown, not what it trains."""

FILE = "job.json"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        directory: Of the sweep.
        number: Names its folder.
        overrides: Its command line.
        threads: Of torch on the CPU, where jobs share a machine; ``None``: as torch chooses.
        trial: Where it reports its curve to: ``storage``, ``study``, ``trial`` and ``pruner``; or ``None``.
    """

    directory: Path
    number: int
    overrides: tuple[str, ...]
    threads: int | None = None
    trial: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Of its run."""
        return self.directory / str(self.number)

    def write(self) -> None:
        """Leave ``job.json``, by which the job is found again, and reads what it needs to know."""
        body = {"identity": identity(self.overrides), "overrides": list(self.overrides)}
        write_json(self.folder / FILE, {**body, "threads": self.threads, "trial": self.trial})

    def outcome(self) -> Outcome:
        """What became of it so far."""
        return outcome(self.folder)


@dataclass(frozen=True)
class Outcome:
    """What a job left.

    Attributes:
        status: ``finished``, ``failed``, ``pruned``, or ``open``: it never began, or did not come to an end.
        record: As in report.json.
    """

    status: str
    record: Mapping[str, Any]

    @property
    def error(self) -> str:
        """One line, of a job that failed."""
        return str(self.record.get("error", ""))


def identity(overrides: Sequence[str]) -> str:
    """A name for what a job does: the same for the same overrides, in any order, however they are shown.

    >>> identity(["seed=1", "prune.ratio=0.5", "figures=false"]) == identity(["prune.ratio=0.5", "seed=1"])
    True
    >>> identity(["seed=1"]) == identity(["seed=2"])
    False
    """
    last = {item.lstrip("+").partition("=")[0]: item.lstrip("+") for item in overrides}
    kept = sorted(item for key, item in last.items() if not key.startswith("hydra") and not changes_nothing(key))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def changes_nothing(key: str) -> bool:
    """Whether a job is the same with another value of ``key``.

    >>> changes_nothing("logger.wandb.offline"), changes_nothing("outputs")
    (True, False)
    """
    return any(f"{key}.".startswith(f"{name}.") for name in CHANGES_NOTHING)


def outcome(folder: Path) -> Outcome:
    """What a job left in its folder."""
    try:
        record = read_json(folder / "report.json", what="report")
    except SlimError:
        return Outcome("open", {})
    status = record.get("status") if isinstance(record, dict) else None
    return Outcome(str(status), record) if status in ("finished", "failed", "pruned") else Outcome("open", {})


def assigned(directory: Path, jobs: Sequence[Sequence[str]], preferred: int | None = None, **options: Any) -> list[Job]:
    """A folder for each list of overrides: what such a job had before, else ``preferred``, else the next number.

    Jobs with the same identity are one job. Processes that do this at the same time in one directory take turns.
    """
    found: dict[str, Job] = {}
    with alone(directory / ".jobs.lock"):
        known, taken = numbers(directory), _taken(directory)
        free = max(taken, default=-1) + 1
        for overrides in jobs:
            name = identity(overrides)
            if name in found:
                continue
            number = known.get(name, free if preferred is None or preferred in taken else preferred)
            free += number == free
            found[name] = Job(directory, number, tuple(overrides), **options)
            found[name].write()
    return list(found.values())


def numbers(directory: Path) -> dict[str, int]:
    """Identity of every job that the directory knows -> its number, the lowest where there are several."""
    found: dict[str, int] = {}
    for number in sorted(_taken(directory)):
        with contextlib.suppress(SlimError, KeyError, TypeError):
            found.setdefault(str(read_json(directory / str(number) / FILE, what="job")["identity"]), number)
    return found


def forget_failure(job: Job) -> None:
    """A job that failed is about to run again: what it left is no outcome any more."""
    if job.outcome().status in ("failed", "pruned"):
        (job.folder / "report.json").unlink()


def holder(folder: Path) -> str | None:
    """Which process runs the job right now: one whose sweep was killed, or of another sweep; ``None``: nobody."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if lock(handle) else os.read(handle, 200).decode(errors="replace").strip() or "another process"
    finally:
        os.close(handle)


def keep_command(directory: Path, command: str) -> None:
    """Add a command line to those that made the sweep, without the password of a storage; each stands there once."""
    shown = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", command)
    path = directory / sweep.COMMANDS
    with alone(directory / ".table.lock"):
        known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if shown not in known:
            write_atomic(path, "\n".join([*known, shown]) + "\n")


def write_table(directory: Path) -> None:
    """Table and front of all jobs so far; processes take turns, so that an older view never replaces a newer one."""
    with alone(directory / ".table.lock"):
        sweep.write(directory)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same ``path``; the system lets go when a process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _taken(directory: Path) -> list[int]:
    return [int(place.name) for place in directory.iterdir() if place.name.isdecimal()] if directory.is_dir() else []
