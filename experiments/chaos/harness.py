"""Kills a run at random events, resumes it each time, and compares what it ends with to a run that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
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
    "latency_seconds=0.001",
    "figures=false",
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

# Runs are forked from a server process that is warm and has computed nothing: a process that has trained may not fork
# one that trains (threads of autograd do not survive a fork), and a fresh one takes seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["experiments.chaos.warm"])

KILLS_PER_VICTIM = 6
MISSES = 3
"""So many victims may end before the kill that was meant for them; then the aim is wrong, and more would not help."""


@dataclass
class Outcome:
    """What became of the killed runs: the event of each kill, and what differs in the end (nothing should)."""

    kills: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    victims: int = 0


@dataclass(frozen=True)
class Program:
    """What is run, killed and compared; both functions can be pickled."""

    main: Callable[[list[str]], int]
    compare: Callable[[Path, Path, Outcome], None]


def chaos(
    folder: Path, kills: int, seed: int = 0, overrides: tuple[str, ...] = TINY, program: Program | None = None
) -> Outcome:
    """Run ``overrides`` once undisturbed and others with ``kills`` SIGKILLs in all; everything in ``folder``.

    The undisturbed run says which events there are (:mod:`experiments.chaos.events`); every kill is aimed at one of
    them, drawn so that every kind of event gets its turn.

    Args:
        folder: Made if missing.
        kills: How often.
        seed: Of the aims.
        overrides: The command line.
        program: ``train.py`` and :func:`compare` if None.

    Raises:
        RuntimeError: A run failed or hung, or victims kept ending before their kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = program or Program(train.main, compare)
    whole, log = folder / "whole", folder / "events"
    wait(start([*overrides, f"hydra.run.dir={whole}"], recorder=Recorder(whole, log), main=program.main))
    events = log.read_text().splitlines()
    outcome, chance, misses = Outcome(), random.Random(seed), 0
    pool: list[str] = []
    while len(outcome.kills) < kills:
        pool = pool or _kinds(events)
        kinds = [pool.pop(chance.randrange(len(pool))) for _ in range(min(KILLS_PER_VICTIM, kills, len(pool)))]
        kinds = kinds[: kills - len(outcome.kills)]
        killed = folder / f"killed-{outcome.victims}"
        outcome.victims += 1
        kills_came = _kill_at(killed, overrides, _moments(events, kinds, chance), events, outcome, program.main)
        misses += not kills_came
        if misses > MISSES:
            raise RuntimeError(
                f"A kill must hit work. Got {misses} victims of {outcome.victims} that ended before theirs ({killed}). "
                "Look whether a resumed run does what an undisturbed one does, and whether the kill comes."
            )
        program.compare(whole, killed, outcome)
    return outcome


def _kinds(events: list[str]) -> list[str]:
    """Every kind of event; steps three times, of which there are many and no two alike."""
    kinds = sorted(set(events))
    return kinds + 2 * [kind for kind in kinds if kind.endswith(": step")]


def _moments(events: list[str], kinds: list[str], chance: random.Random) -> list[int]:
    """One place in ``events`` for each of ``kinds``, at random, in order."""
    return sorted(chance.choice([at for at, event in enumerate(events) if event == kind]) for kind in kinds)


def _kill_at(
    killed: Path,
    overrides: tuple[str, ...],
    moments: list[int],
    events: list[str],
    outcome: Outcome,
    main: Callable[[list[str]], int],
) -> bool:
    """Run a victim with a kill at each of ``moments``, in a new process each, then to its end; False: it ended early.

    A resumed process begins at a checkpoint before the last kill, so it sees every event between that kill and the next
    moment, and more of the kind: which of them is not known, but one comes.
    """
    before = -1
    for moment in moments:
        event = events[moment]
        aim = Aim(event, events[before + 1 : moment + 1].count(event))
        recorder = Recorder(killed, killed.with_suffix(".events"), aim)
        code = exit_code(start(_line(overrides, killed), recorder=recorder, main=main))
        if code == 0:
            return False
        if code != -signal.SIGKILL:
            raise _failed(code)
        outcome.kills.append(event)
        before = moment
    wait(start(_line(overrides, killed), main=main))
    return True


def _line(overrides: tuple[str, ...], directory: Path) -> list[str]:
    again = (directory / "state.json").is_file()
    return [f"resume={directory}"] if again else [*overrides, f"hydra.run.dir={directory}"]


def start(
    argv: list[str],
    stderr: Path | None = None,
    recorder: Recorder | None = None,
    main: Callable[[list[str]], int] = train.main,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Run a command line in a process of its own, started from one that has the heavy imports done.

    Args:
        argv: The command line.
        stderr: A file (or named pipe) for what a user would read there; without it the run is silent.
        recorder: Watches the process.
        main: What runs: a function that can be pickled; it may prepare the process first.
        environment: This process's if None.

    Returns:
        The process. One that takes longer than :data:`LIMIT` is ended by SIGALRM.
    """
    process = _FORKS.Process(target=_run, args=(argv, stderr, recorder, main, LIMIT, dict(environment or os.environ)))
    process.start()
    return process


def _run(
    argv: list[str],
    stderr: Path | None,
    recorder: Recorder | None,
    main: Callable[[list[str]], int],
    limit: int,
    environment: dict[str, str],
) -> None:
    """The process: its streams, its limit, then ``main``; it ends here, whatever multiprocessing would do after."""
    code = 70
    # A shell that started all this in the background had it ignore SIGINT; a run respects that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(limit)
    try:
        # The server's environment is from when it was started.
        os.environ.clear()
        os.environ.update(environment)
        if recorder is not None:
            recorder.install()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        if stderr is not None:
            sys.stderr = stderr.open("a", buffering=1)
            os.dup2(sys.stderr.fileno(), 2)
        elif not os.environ.get("CHAOS_LOUD"):
            os.dup2(quiet, 2)
        code = main(argv if stderr is not None else [*argv, "debug=true"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: BaseProcess) -> None:
    """Wait for a run that must succeed."""
    if (code := exit_code(process)) != 0:
        raise _failed(code)


def exit_code(process: BaseProcess) -> int:
    """Wait for a run; returns its exit code, or minus the number of the signal that ended it."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


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
