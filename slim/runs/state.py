"""The run directory's memory: who holds it, what was asked for, which phases are done."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from slim.errors import SlimError
from slim.files import lock, read_json, read_torch, to_json, write_json
from slim.runs.schema import SAFE_ON_RESUME

if TYPE_CHECKING:
    from slim.deploy import Rounding

FORMAT = 1
LATER_KEYS = {"prune.granularity": "channel", "sparse.steps": None}
"""What runs did before there were such keys, which their state.json lacks."""


class Lock:
    """Holds a run directory for this process: a file ``lock`` with an advisory lock on it.

    The operating system lets the lock go when the process ends, however it ends: a lock file that nobody holds is stale
    by itself and is taken over.

    Raises:
        SlimError: Another live process holds the directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lock"
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SlimError(
                f"The run directory must be writable. Got {self.path.parent} ({error.strerror}). Set output=<dir>."
            ) from error
        if not lock(handle):
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise SlimError(
                f"A run directory belongs to one process. Got {self.path.parent}, held by {holder}. "
                "Wait for it or end it."
            )
        if not self._is_the_file(handle):
            # Its holder took the name away while this process waited in line for it: what is locked has no name.
            os.close(handle)
            return self.__enter__()
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._handle = handle
        _held.add(self)
        return self

    def _is_the_file(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Forgotten first: a signal's exception may come at any moment (torch tells of dead data workers by one), and a
        # number that is closed is soon another file's, which a forked process would close.
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            try:
                # Unlink while holding it: nobody can lock a name that is going away and believe to be alone.
                self.path.unlink(missing_ok=True)
            finally:
                os.close(handle)


_held: set[Lock] = set()


def _let_go() -> None:
    for each in _held:
        if each._handle is not None:
            os.close(each._handle)
            each._handle = None
    _held.clear()


# A forked process (a data worker) has its parent's locks, and lives on for a moment when the parent is killed.
os.register_at_fork(after_in_child=_let_go)


class State:
    """``state.json``: configuration, overrides and the figures of every finished phase.

    Attributes:
        phases: Name of a finished phase -> what it recorded.
        notes: Lines for the report.
        images: Numbers of training and validation images, and a fingerprint of their files; ``None`` where the data do
            not say.
        rounding: What ``prune.round_to=auto`` came to when the run began; ``None`` where it is a number.
        options: Where else configuration was looked for: ``--config-dir`` and ``--config-name``, each with its value.
    """

    def __init__(
        self, directory: Path, config: Mapping[str, Any], overrides: list[str], options: Sequence[str] = ()
    ) -> None:
        self.path = directory / "state.json"
        self.config = dict(config)
        self.overrides = list(overrides)
        self.options = list(options)
        self.phases: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.finished = False
        self.images: dict[str, Any] | None = None
        self.rounding: Rounding | None = None

    @classmethod
    def load(cls, directory: Path) -> State:
        """Read the state of a run.

        Raises:
            SlimError: There is none, or it is no state of ours.
        """
        path = directory / "state.json"
        if not path.is_file():
            raise SlimError(f"resume needs a run directory with a state.json. Got resume={directory}. Check the path.")
        body = read_json(path, what="run state")
        try:
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']}")
            state = cls(directory, body["config"], _texts(body["overrides"]), _texts(body.get("options", [])))
            state.phases = {str(phase): dict(record) for phase, record in body["phases"].items()}
            state.notes, state.finished = _texts(body["notes"]), bool(body["finished"])
            state.images = body.get("images")
            if body.get("rounding") is not None:
                from slim.deploy import Rounding  # and half of torch with it

                state.rounding = Rounding(**body["rounding"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SlimError(f"A run state must be complete. Got {error!r} ({path}). Start a new run.") from error
        return state

    def save(self) -> None:
        """Write it, atomically."""
        write_json(
            self.path,
            {
                "format": FORMAT,
                "config": self.config,
                "overrides": self.overrides,
                "options": self.options,
                "phases": self.phases,
                "notes": self.notes,
                "finished": self.finished,
                "images": self.images,
                "rounding": None if self.rounding is None else asdict(self.rounding),
            },
        )

    def finish(self, phase: str, record: Mapping[str, Any]) -> None:
        """A phase is done; it is never run again."""
        self.phases[phase] = dict(record)
        self.save()

    def note(self, line: str) -> None:
        """Remember a line for the report, once; it is kept when the phase is done."""
        if line not in self.notes:
            self.notes.append(line)


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], safe: Collection[str] = SAFE_ON_RESUME
) -> list[str]:
    """Keys (dotted) whose values differ and that are not ``safe`` to change in the middle of a run, as "key (a -> b)".

    >>> differences({"seed": 0, "debug": False}, {"seed": 1, "debug": True})
    ['seed (0 -> 1)']
    >>> differences({"prune": {"macs": 0.5}}, {"prune": {"macs": 0.5, "granularity": "channel"}})
    []
    """
    old, new = LATER_KEYS | _flat(before), LATER_KEYS | _flat(after)
    missing = object()
    found = []
    for key in sorted(old.keys() | new.keys()):
        may = any(f"{key}.".startswith(f"{name}.") for name in safe)
        if not may and old.get(key, missing) != new.get(key, missing):
            found.append(f"{key} ({old.get(key, 'absent')} -> {new.get(key, 'absent')})")
    return found


def check_same(state: State, after: Mapping[str, Any]) -> None:
    """Refuse to go on with another configuration, or with epochs that do not fit what is trained.

    Raises:
        SlimError: It names the keys that differ.
    """
    _check_under_way(state, after)
    for phase in state.phases:
        kind = phase.partition("-")[0]  # the passes of a schedule: sparse, sparse-2, ...
        old, new = (config.get(kind, {}).get("epochs") for config in (state.config, after))
        if old != new:
            raise SlimError(
                f"A phase that is done stays as it was trained. Got {kind}.epochs={new}, and {phase} is done "
                f"with {old}. Start a new run, or set {kind}.epochs={old}."
            )
    safe = set(SAFE_ON_RESUME) - ({"export"} & state.phases.keys())
    # Through JSON: a tuple of the settings and a list of the file are the same thing.
    found = differences(json.loads(to_json(state.config)), json.loads(to_json(after)), safe)
    if found:
        raise SlimError(
            f"A run goes on with the configuration it began with. Got other values for {', '.join(found)}. "
            f"Start a new run, or change only {', '.join(SAFE_ON_RESUME[:4])}, trainer.devices or logging."
        )


def check_images(state: State, now: dict[str, Any] | None) -> None:
    """Refuse to go on with other images: what was held out would be trained on.

    Raises:
        SlimError: It has both numbers.
    """
    before = state.images
    if before is not None and now is not None:
        other = [name for name in before if name in now and before[name] != now[name]]
        counts = [{name: images[name] for name in images if name != "files"} for images in (now, before)]
        if other:
            got = (
                f"{counts[0]}, it began with {counts[1]}"
                if other != ["files"]
                else f"other files, {counts[0]} as before"
            )
            raise SlimError(
                f"A run goes on with the images it began with. Got {got}. Put the images back, or start a new run."
            )
    state.images = now


def _check_under_way(state: State, after: Mapping[str, Any]) -> None:
    """A phase that is under way may get more epochs, or fewer that it has not begun."""
    for path in sorted(state.path.parent.glob("*/last.ckpt")):
        phase = path.parent.name
        kind = phase.partition("-")[0]
        old, new = (config.get(kind, {}).get("epochs") for config in (state.config, after))
        if phase in state.phases or old is None or new is None or new >= old:
            continue
        saved = read_torch(path, what="checkpoint")
        begun = saved.get("epoch", -1) + 1 if isinstance(saved, dict) else 0
        if begun > new:
            raise SlimError(
                f"A phase is no shorter than what is trained of it. Got {kind}.epochs={new}, and {phase} is in epoch "
                f"{begun}. Set {kind}.epochs={begun} or more."
            )


def _texts(items: Any) -> list[str]:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise TypeError(f"a list of texts is {str(items)[:80]}")
    return items


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= _flat(item, f"{prefix}{key}.")
        return flat
    return {prefix.rstrip("."): value}
