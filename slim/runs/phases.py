"""A whole run: its phases in order, each kept when it is done, and the report at the end."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from slim.channels import Plan
from slim.errors import RunFailed, SlimError
from slim.files import write_atomic
from slim.runs import processes, teachers, weights
from slim.runs.components import Components
from slim.runs.config import plain
from slim.runs.evaluation import lookup, metrics
from slim.runs.failures import explained
from slim.runs.loggers import Loggers
from slim.runs.pruning import Cut, cut_network
from slim.runs.record import command
from slim.runs.schema import Hardware
from slim.runs.signals import Interrupted, Signals
from slim.runs.state import Lock, State, check_images, check_same
from slim.runs.training import train
from slim.runs.weights import NETWORK

Say = Callable[[str], None]


def check_begin(parts: Components) -> None:
    """What only a try tells of a run that begins, before anything is written: files, metric, teachers.

    Raises:
        SlimError: One of them cannot be.
    """
    teachers.check_files(parts)
    check_metric(parts)
    teachers.check_distillation(parts)


def check_metric(parts: Components) -> None:
    """Evaluate one batch with a module from outside, so that a missing metric is found before the training.

    What slim's own tasks log is known: :mod:`slim.runs.prepare` checks it.

    Raises:
        SlimError: It does not log the metric that networks are compared by.
    """
    if not str(parts.config.module["_target_"]).startswith("slim.tasks."):
        with isolate_rng():
            lookup(parts.config.metric, metrics(parts, parts.module(), "val", limit=1), "val")


def run(
    parts: Components,
    directory: Path,
    overrides: list[str],
    say: Say | None = None,
    changed: Callable[[], Sequence[str]] | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Run, or go on with, the phases of a configuration in ``directory``.

    Args:
        parts: Built and checked.
        directory: The run directory; it is made here. One with a state in it is continued.
        overrides: What the user typed, kept for resuming.
        say: Prints a line for the user (stderr by default).
        changed: The overrides that say something else than the experiment, for the comparison of runs; by default all.
        options: Where else configuration was looked for, kept for resuming; see :class:`slim.runs.state.State`.

    Returns:
        The record, as in report.json; of other processes than the first an empty one.

    Raises:
        SlimError: The directory is taken, or belongs to another configuration.
        RunFailed: The run cannot go on. What was done is kept.
        Interrupted: A signal asked it to stop; the message has the command that goes on.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    first = processes.rank() == 0
    lock = Lock(directory) if first else contextlib.nullcontext()
    told = partial(explained, parts.config.data.get("eval_batch_size"), "data.eval_batch_size")
    # Around everything, too: torch tells of a dead data loader worker in a signal handler, so at any moment, that of
    # telling of another failure included.
    with told(), lock, Signals() as signals:
        state = _state(parts, directory, State(directory, plain(parts.config), overrides, options), first, say)
        try:
            with (
                told(),
                processes.explained(),
                Loggers(parts, directory) as loggers,
            ):
                found = _Run(parts, directory, state, signals, loggers, say if first else (lambda line: None))
                return found.all(changed or (lambda: state.overrides))
        except Interrupted as stop:
            raise _stopped(stop.name, directory) from None
        except SlimError as error:
            if signals.received is not None:  # a terminal's Ctrl-C ends spawned data workers, too
                raise _stopped(signals.received, directory) from error
            if first:
                with contextlib.suppress(SlimError):  # a full disk has no room for this either
                    write_atomic(directory / "error.txt", f"{error}\n")
            # Whatever was wrong, files were written: it is the run that failed.
            raise error if isinstance(error, RunFailed) else RunFailed(str(error)) from error


def _stopped(name: str, directory: Path) -> Interrupted:
    again = f"{processes.program()} {shlex.quote(f'resume={directory}')}"
    return Interrupted(name, f"Stopped by {name}; nothing is lost. Go on with: {again}")


def _state(parts: Components, directory: Path, new: State, first: bool, say: Say) -> State:
    """The state of the run so far, ``new`` where it begins; rank 0 alone writes it."""
    settings = new.config
    if not first:
        state = State.load(directory) if (directory / "state.json").is_file() else new
        parts.go_on_with(state.rounding)
        return state
    for part in directory.rglob(".*.part"):
        part.unlink()  # what a killed process was writing; the lock says that nobody writes now
    if (directory / "state.json").is_file():
        state = State.load(directory)
        check_same(state, settings)
        if (line := _other_processes(state.config["trainer"], parts.config.trainer)) is not None:
            say(line)
            state.note(line)
        # What is given when a run goes on counts from here on, after the next stop, too.
        state.config, state.overrides, state.options = settings, new.overrides, new.options
    else:
        state = new
    check_images(state, _images(parts.data))
    parts.go_on_with(state.rounding)
    state.rounding = parts.rounding
    state.save()
    (directory / "error.txt").unlink(missing_ok=True)
    return state


def _images(data: Any) -> dict[str, Any] | None:
    """Numbers of training and validation images and a fingerprint of their files, where the data say them."""
    counts = getattr(data, "counts", None)
    if not isinstance(counts, Mapping) or not {"train", "val"} <= set(counts):
        return None
    found: dict[str, Any] = {name: int(counts[name]) for name in ("train", "val")}
    files = getattr(data, "fingerprint", None)
    return found | ({"files": files} if isinstance(files, str) else {})


def _other_processes(before: Mapping[str, Any], now: Hardware) -> str | None:
    """A line about what changes when a run is resumed with another number of processes; ``None`` with the same."""
    then = before.get("devices", 1) * before.get("num_nodes", 1)
    if then == now.processes:
        return None
    return (
        f"Goes on with {now.processes} instead of {then} processes. The same: weights, plan, optimizer, epochs, and "
        f"the order of the images. Not the same: a step sees {now.processes} instead of {then} batches, so there are "
        "other steps to an epoch and other bits from here on."
    )


class _Run:
    def __init__(
        self, parts: Components, directory: Path, state: State, signals: Signals, loggers: Loggers, say: Say
    ) -> None:
        self.parts, self.directory, self.state, self.signals, self.say = parts, directory, state, signals, say
        self.loggers = loggers

    def all(self, changed: Callable[[], Sequence[str]]) -> dict[str, Any]:
        """Every phase of every pass, then the report."""
        config = self.parts.config
        gpu = self.parts.hardware.accelerator == "gpu"
        torch.set_float32_matmul_precision("high" if gpu else "highest")
        if config.trainer.threads is not None:
            torch.set_num_threads(config.trainer.threads)
        described = getattr(self.parts.data, "describe", lambda: type(self.parts.data).__name__)()
        self.say(f"{config.name}: {described}; {self.parts.hardware.line}; {self.directory}")
        # Phases hand on files, not networks: what nobody works on is on the disk, not in memory.
        before = self.start = self._start()
        if processes.rank() == 0:
            teachers.keep(self.parts, self.directory)
            from slim.report.tensorboard import log_overview

            begun = {"command": command(self.state.overrides, self.state.options), "metric": config.metric.model_dump()}
            log_overview(self.directory, begun)
        for number in range(len(config.passes)):
            for kind in config.phases:
                last = number == len(config.passes) - 1
                if (number and kind == "baseline") or (kind == "export" and not last):
                    continue
                name = kind if number == 0 or kind == "export" else f"{kind}-{number + 1}"
                before = self._phase(name, kind, number, before)
                if self.signals.received is not None:  # some of what runs in a phase catches everything
                    raise Interrupted(self.signals.received)
        return self._report(changed)

    def _start(self) -> Path | None:
        """The weights that the run begins with; ``None``: untrained ones."""
        checkpoint = self.parts.config.checkpoint
        if checkpoint is None:
            return None
        if "start" not in self.state.phases:
            self._keep("start", weights.load(self.parts, Path(checkpoint)), {})
        return self._file("start")

    def _phase(self, name: str, kind: str, number: int, before: Path | None) -> Path | None:
        if name in self.state.phases:
            self.say(f"{name}: done before")
        else:
            self._banner(name, kind)
            work = {"prune": self._prune, "export": self._export}.get(kind, self._train)
            work(name, number, before)
        if kind == "export":
            return before
        # A baseline before sparse training is a run of its own: what follows begins from the network before it.
        # Everything else begins from the file, whether or not this process wrote it, so that a resumed run begins from
        # the same bits and strides.
        return before if kind == "baseline" and self.parts.config.first == "sparse" else self._file(name)

    def _train(self, name: str, number: int, before: Path | None) -> None:
        steps = self._steps_before()
        self.loggers.apart = sum(int(figures.get("steps", 0)) for figures in self.state.phases.values()) - steps
        done = train(
            self.parts,
            self.directory,
            name,
            before,
            self.signals,
            self.loggers,
            number=number,
            steps_before=steps,
            note=self.state.note,
        )
        if done.unfinished is not None:
            self._note(f"{name}: {done.unfinished}")
        self._keep(name, done.module, done.figures)

    def _prune(self, name: str, number: int, before: Path | None) -> None:
        if self.parts.rounding is not None:
            self._note(f"{name}: {self.parts.rounding.line}")
        cut = cut_network(self.parts, self.directory, before, self.start, number)
        self._keep_plan(name, cut.plan)
        self.say(f"{name:9} validation: {self._ladder(cut)}; {self._left(cut)}")
        for line in cut.notes:
            self._note(f"{name}: {line}")
        if self._at_chance(cut):
            self._note(f"The cut took the network to chance ({self._ladder(cut)}); fine-tuning starts from there.")
        if processes.rank() == 0 and self.parts.config.figures:
            from slim.report.tensorboard import log_cut

            drawn = {key: cut.figures[key] for key in ("widths", "gammas", "cut", "removed")}
            log_cut(self.directory / name, **drawn, step=self._steps_before())
        figures = {"val": cut.validation[cut.row], "validation": cut.validation, "weights": cut.weights}
        figures["difference"] = None if math.isnan(cut.difference) else cut.difference
        self._keep(name, cut.module, {**figures, **cut.figures})

    def _steps_before(self) -> int:
        """Optimizer steps of the phases that the next one goes on from."""
        apart = "baseline" if self.parts.config.first == "sparse" else None
        return sum(int(figures.get("steps", 0)) for name, figures in self.state.phases.items() if name != apart)

    def _export(self, name: str, number: int, before: Path | None) -> None:
        from slim import deploy
        from slim.runs import exporting

        begun, folder = time.perf_counter(), self.directory / exporting.FOLDER
        for unfinished in folder.glob(f"{deploy.UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed, as the run's lock says
        found, reference = exporting.export_network(self.parts, folder, before)
        shown = self.parts.config.metric.shown
        for form, row in found.described().items():
            kept = f"{shown(row['metric'])} of {shown(row['reference'])}"
            self.say(
                f"{form:9} {row['file']}, {row['bytes']:,} bytes, validation {kept}, off by {row['difference']:.1e}"
            )
        for line in found.notes:
            self._note(f"{name}: {line}")
        self.state.finish(name, exporting.figures(found, reference, time.perf_counter() - begun))

    def _ladder(self, cut: Cut) -> str:
        """The metric before and after every step of the cut."""
        shown = self.parts.config.metric.shown
        return ", ".join(f"{row} {shown(value)}" for row, value in cut.validation.items())

    def _left(self, cut: Cut) -> str:
        return ", ".join(
            f"{100 * value:.1f} % of the {'channels gone' if kind == 'ratio' else f'{kind} left'}"
            for kind, value in cut.figures["achieved"].items()
            if kind in ("macs", *cut.figures["requested"])
        )

    def _at_chance(self, cut: Cut) -> bool:
        """Whether a classifier does no better after the cut than guessing, and did before."""
        classes = getattr(self.parts.data, "num_classes", None)
        if self.parts.config.metric.name != "accuracy" or not classes:
            return False
        return bool(cut.validation.get("recovered", 1.0) < 1.5 / classes <= cut.validation["sparse"])

    # Keeping

    def _file(self, name: str) -> Path:
        return self.directory / name / NETWORK

    def _keep(self, name: str, module: pl.LightningModule, figures: Mapping[str, Any]) -> None:
        if processes.rank() == 0:
            weights.save(self._file(name), module, self.parts.network(module))
            self.state.finish(name, figures)
        else:
            self.state.phases[name] = dict(figures)
        processes.barrier()  # what comes next reads the file

    def _keep_plan(self, name: str, plan: Plan) -> None:
        if processes.rank() == 0:
            write_atomic(self.directory / name / "plan.json", plan.to_json())

    def _note(self, line: str) -> None:
        self.say(line)
        self.state.note(line)

    def _banner(self, name: str, kind: str) -> None:
        epochs = "" if kind in ("prune", "export") else f" {self.parts.config.training(kind).epochs} epochs "
        self.say(f"── {name} ──{epochs}".ljust(72, "─"))

    # The end

    def _report(self, changed: Callable[[], Sequence[str]]) -> dict[str, Any]:
        from slim.runs.report import finish

        found = finish(self.parts, self.directory, self.state, self.say, changed)
        self.loggers.finish(found)
        return found
