"""Kills a run at random events, resumes it each time, and compares what it ends with to a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import train
from experiments.chaos.events import Aim, Recorder
from slim.runs.record import timeless

TINY = (
    "+experiment=vgg_slim",
    "data.image_size=8",
    "data.limit_train=256",
    "data.batch_size=32",
    "model.widths=[8,M,16]",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.checkpoint_every=3",
    "penalty=target",
    "sparse.epochs=12",
    "sparse.slim_every=2",
    "prune.ratio=0.5",
    "finetune.epochs=8",
    "recovery.recalibrate_batches=2",
    "latency_seconds=0.01",
)
"""All phases, surgery in the middle of training, checkpoints within epochs; a few seconds on one core."""


LENGTHS = {
    "tiny": (),
    "ten times shorter": ("sparse.epochs=1", "sparse.slim_every=1", "finetune.epochs=1"),
    "ten times longer": ("sparse.epochs=120", "sparse.slim_every=20", "finetune.epochs=80"),
}
"""What is changed in :data:`TINY`: kills must hit work on machines of any speed."""

LIMIT = 1200
"""Seconds for one process of a run, then SIGALRM ends it: a run that hangs is a failure, not a reason to wait on."""

KILLS_PER_VICTIM = 6
MISSES = 3
"""So many victims may end before the kill that was meant for them; then the aim is wrong, and more would not help."""


@dataclass
class Outcome:
    """What became of the killed runs: the event of each kill, and what differs in the end (nothing should)."""

    kills: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    victims: int = 0


def chaos(folder: Path, kills: int, seed: int = 0, overrides: tuple[str, ...] = TINY) -> Outcome:
    """Run ``overrides`` once undisturbed and others with ``kills`` SIGKILLs in all; everything in ``folder``.

    The undisturbed run says which events there are (:mod:`experiments.chaos.events`); every kill is aimed at one of
    them, drawn so that every kind of event gets its turn.

    Args:
        folder: Made if missing.
        kills: How often.
        seed: Of the aims.
        overrides: The command line.

    Raises:
        RuntimeError: A run failed or hung, or victims kept ending before their kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole, log = folder / "whole", folder / "events"
    wait(start([*overrides, f"hydra.run.dir={whole}"], recorder=Recorder(whole, log)))
    events = log.read_text().splitlines()
    outcome, chance, misses = Outcome(), random.Random(seed), 0
    pool: list[str] = []
    while len(outcome.kills) < kills:
        pool = pool or _kinds(events)
        kinds = [pool.pop(chance.randrange(len(pool))) for _ in range(min(KILLS_PER_VICTIM, kills, len(pool)))]
        kinds = kinds[: kills - len(outcome.kills)]
        killed = folder / f"killed-{outcome.victims}"
        outcome.victims += 1
        if not _kill_at(killed, overrides, _moments(events, kinds, chance), events, outcome):
            misses += 1
        if misses > MISSES:
            raise RuntimeError(
                f"A kill must hit work. Got {misses} victims of {outcome.victims} that ended before theirs ({killed}). "
                "Look whether a resumed run does what an undisturbed one does, and whether the kill comes."
            )
        compare(whole, killed, outcome)
    return outcome


def _kinds(events: list[str]) -> list[str]:
    """Every kind of event; steps three times, of which there are many and no two alike."""
    kinds = sorted(set(events))
    return kinds + 2 * [kind for kind in kinds if kind.endswith(": step")]


def _moments(events: list[str], kinds: list[str], chance: random.Random) -> list[int]:
    """One place in ``events`` for each of ``kinds``, at random, in order."""
    return sorted(chance.choice([at for at, event in enumerate(events) if event == kind]) for kind in kinds)


def _kill_at(killed: Path, overrides: tuple[str, ...], moments: list[int], events: list[str], outcome: Outcome) -> bool:
    """Run a victim with a kill at each of ``moments``, in a new process each, then to its end; False: it ended early.

    A resumed process begins at a checkpoint before the last kill, so it sees every event between that kill and the next
    moment, and more of the kind: which of them is not known, but one comes.
    """
    before = -1
    for moment in moments:
        event = events[moment]
        aim = Aim(event, events[before + 1 : moment + 1].count(event))
        recorder = Recorder(killed, killed.with_suffix(".events"), aim)
        code = exit_code(start(_line(overrides, killed), recorder=recorder))
        if code == 0:
            return False
        if code != -signal.SIGKILL:
            raise _failed(code)
        outcome.kills.append(event)
        before = moment
    wait(start(_line(overrides, killed)))
    return True


def _line(overrides: tuple[str, ...], directory: Path) -> list[str]:
    again = (directory / "state.json").is_file()
    return [f"resume={directory}"] if again else [*overrides, f"hydra.run.dir={directory}"]


def start(argv: list[str], stderr: Path | None = None, recorder: Recorder | None = None) -> int:
    """Run the command line in a child process; the imports of this process spare it the start-up. Returns its id.

    What a user would read on stderr goes to the file ``stderr``; ``recorder`` watches the child. One that takes longer
    than :data:`LIMIT` is ended by SIGALRM.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        # A shell that started this process in the background had it ignore SIGINT; a run respects that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # The handler of a test's own limit was inherited with the fork.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)
        try:
            if recorder is not None:
                recorder.install()
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            if stderr is not None:
                sys.stderr = stderr.open("a", buffering=1)  # a test's own stderr would go on collecting
                os.dup2(sys.stderr.fileno(), 2)
            elif not os.environ.get("CHAOS_LOUD"):
                os.dup2(quiet, 2)
            code = train.main(argv if stderr is not None else [*argv, "debug=true"])
        finally:
            os._exit(code)
    return process


def wait(process: int) -> None:
    """Wait for a child that must succeed."""
    if (code := exit_code(process)) != 0:
        raise _failed(code)


def exit_code(process: int) -> int:
    """Wait for a child; returns its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _failed(code: int) -> RuntimeError:
    hung = f" It took longer than {LIMIT} s." if code == -signal.SIGALRM else ""
    return RuntimeError(f"A run must end with code 0. Got {code}.{hung} Set CHAOS_LOUD=1 to see why.")


def compare(whole: Path, killed: Path, outcome: Outcome) -> None:
    """Weights, plan, report and curves of the two runs, bit by bit."""
    for name in ("model.safetensors", "prune/plan.json", "sparse/network.safetensors", "prune/network.safetensors"):
        if contents(whole / name) != contents(killed / name):
            outcome.differences.append(name)
    reports = [timeless(json.loads((place / "report.json").read_text())) for place in (whole, killed)]
    outcome.differences += [f"report.json: {key}" for key in reports[0] if reports[0][key] != reports[1].get(key)]
    for phase in ("sparse", "finetune"):
        a, b = curves(whole / phase), curves(killed / phase)
        outcome.differences += [
            f"curve {phase} {tag}" for tag in sorted(a.keys() | b.keys()) if a.get(tag) != b.get(tag)
        ]


def contents(path: Path) -> Any:
    """What is in a file: its bytes, or the metadata and tensors of a safetensors file (its header has no order)."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key).numpy().tobytes() for key in sorted(file.keys())}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar curve as TensorBoard shows it: (step, value). What is below ``time/`` belongs to the machine."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    tags = [tag for tag in found.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}
