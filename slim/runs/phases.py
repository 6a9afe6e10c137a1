"""A whole run: its phases in order, each kept when it is done, and the report at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slim
from slim.runs.signals import Interrupted, Signals
from slim.channels import Plan, plan_of
from slim.errors import RunFailed, SlimError
from slim.files import write_atomic
from slim.runs import cut, judge, teacher
from slim.runs.failures import explained
from slim.runs.schedule import restart
from slim.runs.schema import plain
from slim.runs.source import load_network
from slim.runs.state import Lock, State, check_same
from slim.runs.training import train
from slim.runs.workspace import Workspace

NETWORK = "network.safetensors"
"""What every finished phase leaves in its folder."""

DENSE = "dense"
"""The untrained network, named like a phase that left it; it needs no file."""


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
        # Phases hand on names, not networks: what nobody works on is on the disk, not in memory.
        before = self.start = self._start()
        teacher.keep(self.work, self.directory)
        for number in range(len(settings.steps)):
            for kind in settings.phases:
                if number and kind == "baseline":
                    continue
                name = kind if number == 0 else f"{kind}-{number + 1}"
                before = self._phase(name, kind, number, before)
        return self._report()

    # Phases

    def _start(self) -> str:
        checkpoint = self.work.settings.checkpoint
        if checkpoint is None:
            return DENSE
        if "start" not in self.state.phases:
            self._keep("start", self.work.start or load_network(self.work, Path(checkpoint)), {})
        return "start"

    def _phase(self, name: str, kind: str, number: int, before: str) -> str:
        if name in self.state.phases:
            self.say(f"{name}: done before")
        else:
            self._banner(name, kind)
            work = self._prune if kind == "prune" else self._train
            work(name, kind, number, before)
        # A baseline before sparse training is a run of its own: what follows begins from the network before it.
        # Everything else begins from the file, whether or not this process wrote it, so that a resumed run begins from
        # the same bits and strides.
        return before if kind == "baseline" and self.work.settings.first == "sparse" else name

    def _train(self, name: str, kind: str, number: int, before: str) -> None:
        # Of a measured budget the prune phase measures once.
        phases, prune = self.work.settings.phases, self.work.settings.prune
        cut_next = kind == "sparse" and "prune" in phases and prune.latency is None
        network = self._load(before)
        done = train(
            self.work, self.directory, name, network, self.signals, number=number, cut_next=cut_next, note=self._note
        )
        if done.plan is not None:
            self._keep_plan(name.replace("sparse", "prune"), done.plan)
        self._keep(name, done.network, {**done.record, "history": done.history})

    def _prune(self, name: str, kind: str, number: int, before: str) -> None:
        """Never more than one dense and one thin network at a time: each is judged, then let go."""
        work, step = self.work, self.work.settings.steps[number]
        network = self._load(before)
        graph = work.trace(network)
        selection = cut.select(work, graph, number)
        plan = graph.plan(selection.removed)
        self._keep_plan(name, plan)
        judged = {"sparse": self._judge(network)}
        rebuilt = slim.rebuild(network, plan)
        judged["rebuilt"] = self._judge(rebuilt)
        figures = cut.describe(work, graph, selection, plan_of(rebuilt) or plan)
        judged["masked"] = self._judge(slim.mask(network, plan, in_place=True))
        difference = judge.check_equal(judged["masked"].logits, judged["rebuilt"].logits)
        del network, graph
        if step.weights == "trained":
            del rebuilt
            row, thin = "recovered", cut.recover(work, self._load(before), selection.removed, plan)
        else:
            row = "restarted"
            thin, line = restart(work, self.directory, lambda: self._load(self.start), rebuilt, number)
            self._note(f"{name}: {line}")
        judged[row] = self._judge(thin)
        val = {key: judged[key].accuracy for key in ("sparse", "masked", "rebuilt", row)}
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
        if thinnest := judge.bottleneck(figures["widths"]):
            self._note(f"{name}: {thinnest}")
        self._curves(name, figures)
        self._keep(
            name,
            thin,
            {"val": val[row], "validation": val, "weights": step.weights, "difference": difference, **figures},
        )

    def _judge(self, network: nn.Module) -> judge.Judged:
        work = self.work
        accuracy = judge.accuracies({"": network}, work.validation(), work.hardware.device)[""]
        return judge.Judged(accuracy, judge.logits(network, work.batch(work.validation())))

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
        dense = self.work.dense()
        return dense if name == DENSE else slim.load(self.directory / name / NETWORK, dense)

    def _note(self, line: str) -> None:
        self.say(line)
        self.state.note(line)

    def _banner(self, name: str, kind: str) -> None:
        epochs = "" if kind == "prune" else f" {getattr(self.work.settings, kind).epochs} epochs "
        self.say(f"── {name} ──{epochs}".ljust(72, "─"))

    # The end

    def _report(self) -> dict[str, Any]:
        from slim.runs.ending import finish

        return finish(self.work, self.directory, self.state, self.say)
