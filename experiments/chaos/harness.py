"""Kills a run at random moments, resumes it each time, and compares what it ends with to a run that was left alone."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import train
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


@dataclass
class Outcome:
    """What became of the killed run: where it was each time, and what differs in the end (nothing should)."""

    kills: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


ROUND = ("sparse", "sparse", "prune", "finetune", "report", "artifact")
"""What a run is doing when it is killed, each time; the prune phase and the artifact are short and would be missed."""


def chaos(folder: Path, kills: int, seed: int = 0, overrides: tuple[str, ...] = TINY, longest: float = 4.0) -> Outcome:
    """Run ``overrides`` once undisturbed and others with ``kills`` SIGKILLs in all; everything in ``folder``.

    Args:
        folder: Made if missing.
        kills: How often.
        seed: Of the moments.
        overrides: The command line.
        longest: A kill in a training phase comes at most so many seconds after its process took it up.
    """
    whole, killed = folder / "whole", folder / "killed-0"
    wait(start([*overrides, f"hydra.run.dir={whole}"]))
    outcome, chance, aims = Outcome(), random.Random(seed), itertools.cycle(ROUND)
    latest = {"sparse": longest, "finetune": longest / 2, "prune": 0.3, "report": 0.3, "artifact": 0.0}
    while len(outcome.kills) < kills:
        process, aim = start(_line(overrides, killed)), next(aims)
        if reaches(killed, aim, process, chance.uniform(0.0, latest[aim])):
            outcome.kills.append(where(killed))
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        else:  # it came to its end before: the next victim
            compare(whole, killed, outcome)
            killed, aims = folder / f"killed-{len(outcome.kills)}", itertools.cycle(ROUND)
    if where(killed) != "end":
        wait(start(_line(overrides, killed)))
    compare(whole, killed, outcome)
    return outcome


def _line(overrides: tuple[str, ...], directory: Path) -> list[str]:
    again = (directory / "state.json").is_file()
    return [f"resume={directory}"] if again else [*overrides, f"hydra.run.dir={directory}"]


def reaches(directory: Path, aim: str, process: int, delay: float) -> bool:
    """Wait until the run does ``aim``, and ``delay`` seconds longer; False when it ended."""
    moment: float | None = None
    while moment is None or time.monotonic() < moment:
        if moment is None and where(directory) == aim:
            moment = time.monotonic() + delay
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            wait(process)
            return False
        time.sleep(0.0005)
    return True


def where(directory: Path) -> str:
    """What the run in ``directory`` does: begin, a phase, report, artifact (being written), or end."""
    if not (directory / "state.json").is_file():
        return "begin"
    state = json.loads((directory / "state.json").read_text())
    if state["finished"]:
        return "end"
    if any(directory.glob(".model.safetensors.*.part")):
        return "artifact"
    phases = [*state["config"]["phases"], "report"]
    return str(phases[len(state["phases"])])


def start(argv: list[str], told: Path | None = None) -> int:
    """Run the command line in a child process; the imports of this process spare it the start-up. Returns its id.

    What a user would read on stderr goes to the file ``told``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = 70
        # A shell that started this process in the background had it ignore SIGINT; a run respects that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            if told is not None:
                sys.stderr = told.open("a", buffering=1)  # a test's own stderr would go on collecting
                os.dup2(sys.stderr.fileno(), 2)
            elif not os.environ.get("CHAOS_LOUD"):
                os.dup2(quiet, 2)
            code = train.main(argv if told is not None else [*argv, "debug=true"])
        finally:
            os._exit(code)
    return process


def wait(process: int) -> None:
    """Wait for a child that must succeed."""
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"The run must end with code 0. Got {os.waitstatus_to_exitcode(status)}. Set CHAOS_LOUD=1.")


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
