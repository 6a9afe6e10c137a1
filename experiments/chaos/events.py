"""What a run does, as events that can be counted: optimizer steps, epoch ends, files half written and written.

An event is a line such as ``sparse: step`` or ``finetune: finetune/last.ckpt half written``: the phase the run is in,
and what happened. The same configuration and seed give the same events in the same order on every machine, which makes
them better aims for a kill than seconds.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Aim:
    """Kill the process at the ``count``-th ``event`` (from 1)."""

    event: str
    count: int


class Recorder:
    """Writes every event of the run in ``directory`` to the file ``log`` and kills its process at the one aimed at."""

    def __init__(self, directory: Path, log: Path, aim: Aim | None = None) -> None:
        self.directory, self.log, self.aim = directory, log, aim
        self.seen: Counter[str] = Counter()
        self.training = False
        self.process = 0

    def record(self, what: str, part: Path | None = None) -> None:
        """Count an event; ``part`` is a file under way, of which a kill leaves the first half."""
        if os.getpid() != self.process:  # a data worker or another rank
            return
        event = f"{where(self.directory)}: {what}"
        self.seen[event] += 1
        with self.log.open("a") as log:
            log.write(event + "\n")
        if self.aim == Aim(event, self.seen[event]):
            if part is not None:
                os.truncate(part, part.stat().st_size // 2)
            kill()

    def install(self) -> None:
        """Hook into this process for the rest of its life: a forked child that runs one command line."""
        self.process = os.getpid()
        self._watch_files()
        self._watch_training()

    def _watch_files(self) -> None:
        # slim.files.write_atomic writes .<name>.<process>.part and renames it.
        rename = os.replace

        def replace(source: Any, target: Any, **options: Any) -> None:
            atomic = str(source).endswith(".part")
            # One kind for all figures: there are many, and a kill is as good in one as in another.
            name = os.path.relpath(target, self.directory) if Path(target).suffix != ".png" else "a figure"
            if atomic:
                self.record(f"{name} half written", Path(source))
            rename(source, target, **options)
            if atomic:
                self.record(f"{name} written")

        os.replace = replace

    def _watch_training(self) -> None:
        from pytorch_lightning.loops.fit_loop import _FitLoop
        from torch.optim.optimizer import register_optimizer_step_post_hook

        advance, ends = _FitLoop.advance, _FitLoop.on_advance_end

        def advanced(loop: Any) -> None:
            self.training = True
            try:
                advance(loop)
            finally:
                self.training = False

        def ended(loop: Any) -> None:
            ends(loop)
            self.record("epoch")

        def stepped(*_: Any) -> None:
            if self.training:  # not a forecast, which steps on its own
                self.record("step")

        _FitLoop.advance, _FitLoop.on_advance_end = advanced, ended  # type: ignore[method-assign]
        register_optimizer_step_post_hook(stepped)


def kill() -> None:
    """As the out-of-memory killer or a power failure would: nothing gets to clean up."""
    os.kill(os.getpid(), signal.SIGKILL)


def where(directory: Path) -> str:
    """What the run in ``directory`` does: begin, a phase, report, or end."""
    path = directory / "state.json"
    if not path.is_file():
        return "begin"
    state = json.loads(path.read_text())
    phases = [*state["config"]["phases"], "report"]
    return "end" if state["finished"] else str(phases[min(len(state["phases"]), len(phases) - 1)])
