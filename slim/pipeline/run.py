"""A whole run: its phases in order, each kept when it is done, and the report at the end."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slim
from slim.callbacks.signals import Interrupted, Signals
from slim.channels import Plan, plan_of
from slim.errors import RunFailed, SlimError
from slim.files import write_atomic
from slim.pipeline import cut, judge, teacher
from slim.pipeline.failures import explained
from slim.pipeline.schedule import restart
from slim.pipeline.settings import plain
from slim.pipeline.source import load_network
from slim.pipeline.state import Lock, State, check_same
from slim.pipeline.training import train
from slim.pipeline.workspace import Workspace

NETWORK = "network.safetensors"
"""What every finished phase leaves in its folder."""


def run(
    work: Workspace, directory: Path, overrides: list[str], say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Run, or go on with, the phases of ``work.settings`` in ``directory``.

    Args:
        work: Built and checked.
        directory: The run directory; it is made here. One with a state in it is continued.
        overrides: What the user typed, kept for resuming.
        say: Prints a line for the user (stderr by default).

    Returns:
        The record, as in report.json.

    Raises:
        SlimError: The directory is taken, or belongs to another configuration.
        RunFailed: The run cannot go on. What was done is kept.
        Interrupted: A signal asked it to stop; the message has the command that goes on.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    with Lock(directory), Signals() as signals:
        for part in directory.rglob(".*.part"):
            part.unlink()  # what a killed process was writing; the lock says that nobody writes now
        if (directory / "state.json").is_file():
            state = State.load(directory)
            check_same(state.config, plain(work.settings))
            state.config = plain(work.settings)
        else:
            state = State(directory, plain(work.settings), overrides)
        state.save()
        (directory / "error.txt").unlink(missing_ok=True)
        try:
            with explained(work.settings.data.get("eval_batch_size"), "data.eval_batch_size"):
                return _Run(work, directory, state, signals, say).all()
        except Interrupted as stop:
            raise Interrupted(
                stop.name, f"Stopped by {stop.name}; nothing is lost. Go on with: python train.py resume={directory}"
            ) from None
        except SlimError as error:
            with contextlib.suppress(SlimError):  # a full disk has no room for this either
                write_atomic(directory / "error.txt", f"{error}\n")
            # Whatever was wrong, files were written: it is the run that failed.
            raise error if isinstance(error, RunFailed) else RunFailed(str(error)) from error


class _Run:
    def __init__(
        self, work: Workspace, directory: Path, state: State, signals: Signals, say: Callable[[str], None]
    ) -> None:
        self.work, self.directory, self.state, self.signals, self.say = work, directory, state, signals, say

    def all(self) -> dict[str, Any]:
        """Every phase of every pass, then the report."""
        settings = self.work.settings
        torch.set_float32_matmul_precision("high" if self.work.hardware.accelerator == "gpu" else "highest")
        if settings.trainer.threads is not None:
            torch.set_num_threads(settings.trainer.threads)
        self.say(f"{settings.name}: {self.work.data.describe()}; {self.work.hardware.line}; {self.directory}")
        network = self._start()
        self.start = network
        teacher.keep(self.work, self.directory)
        for number in range(len(settings.steps)):
            for kind in settings.phases:
                if number and kind == "baseline":
                    continue
                name = kind if number == 0 else f"{kind}-{number + 1}"
                network = self._phase(name, kind, number, network)
        return self._report()

    # Phases

    def _start(self) -> nn.Module:
        checkpoint = self.work.settings.checkpoint
        if checkpoint is None:
            return self.work.dense()
        if "start" in self.state.phases:
            return self._load("start")
        self._keep("start", self.work.start or load_network(self.work, Path(checkpoint)), {})
        return self._load("start")

    def _phase(self, name: str, kind: str, number: int, network: nn.Module) -> nn.Module:
        if name in self.state.phases:
            self.say(f"{name}: done before")
        else:
            self._banner(name, kind)
            work = self._prune if kind == "prune" else self._train
            work(name, kind, number, copy.deepcopy(network))
        # A baseline before sparse training is a run of its own: what follows begins from the network before it.
        # Everything else begins from the file, whether or not this process wrote it, so that a resumed run begins from
        # the same bits and strides.
        return network if kind == "baseline" and self.work.settings.first == "sparse" else self._load(name)

    def _train(self, name: str, kind: str, number: int, network: nn.Module) -> None:
        # Of a measured budget the prune phase measures once.
        phases, prune = self.work.settings.phases, self.work.settings.prune
        cut_next = kind == "sparse" and "prune" in phases and prune.latency is None
        done = train(
            self.work, self.directory, name, network, self.signals, number=number, cut_next=cut_next, note=self._note
        )
        if done.plan is not None:
            self._keep_plan(name.replace("sparse", "prune"), done.plan)
        self._keep(name, done.network, {**done.record, "history": done.history})

    def _prune(self, name: str, kind: str, number: int, network: nn.Module) -> None:
        work = self.work
        graph = work.trace(network)
        selection = cut.select(work, graph, number)
        plan = graph.plan(selection.removed)
        self._keep_plan(name, plan)
        masked, rebuilt = slim.mask(network, plan), slim.rebuild(network, plan)
        difference = judge.check_equal(masked, rebuilt, work.batch(work.validation()))
        step = work.settings.steps[number]
        if step.weights == "trained":
            row, thin = "recovered", cut.recover(work, network, graph, selection.removed, plan)
        else:
            row = "restarted"
            thin, line = restart(work, self.directory, self.start, rebuilt, number)
            self._note(f"{name}: {line}")
        networks = {"sparse": network, "masked": masked, "rebuilt": rebuilt, row: thin}
        val = judge.accuracies(networks, work.validation(), work.hardware.device)
        told = ", ".join(f"{key} {100 * value:.2f} %" for key, value in val.items())
        left = ", ".join(
            f"{100 * value:.1f} % of the {'channels gone' if kind == 'ratio' else f'{kind} left'}"
            for kind, value in selection.achieved.items()
            if kind in ("macs", *selection.requested)
        )
        self.say(f"{name:9} validation: {told}; {left}")
        for line in selection.notes:
            self._note(f"{name}: {line}")
        if val.get("recovered", 1.0) < 1.5 / work.data.num_classes <= val["sparse"]:
            self._note(f"The cut took the network to chance ({told}); fine-tuning starts from there.")
        figures = cut.describe(work, graph, selection, plan_of(rebuilt) or plan)
        if thinnest := judge.bottleneck(figures["widths"]):
            self._note(f"{name}: {thinnest}")
        self._curves(name, figures)
        self._keep(
            name,
            thin,
            {"val": val[row], "validation": val, "weights": step.weights, "difference": difference, **figures},
        )

    def _curves(self, name: str, figures: Mapping[str, Any]) -> None:
        from slim.callbacks.dashboard import log_cut

        drawn = {key: figures[key] for key in ("widths", "gammas", "cut", "removed")}
        log_cut(self.directory / name, **drawn)

    # Keeping

    def _keep(self, name: str, network: nn.Module, figures: Mapping[str, Any]) -> None:
        slim.save(self.directory / name / NETWORK, network, plan_of(network))
        self.state.finish(name, figures)

    def _keep_plan(self, name: str, plan: Plan) -> None:
        write_atomic(self.directory / name / "plan.json", plan.to_json())

    def _load(self, name: str) -> nn.Module:
        return slim.load(self.directory / name / NETWORK, self.work.dense())

    def _note(self, line: str) -> None:
        self.say(line)
        self.state.note(line)

    def _banner(self, name: str, kind: str) -> None:
        epochs = "" if kind == "prune" else f" {getattr(self.work.settings, kind).epochs} epochs "
        self.say(f"── {name} ──{epochs}".ljust(72, "─"))

    # The end

    def _report(self) -> dict[str, Any]:
        from slim.pipeline.ending import finish

        return finish(self.work, self.directory, self.state, self.say)
