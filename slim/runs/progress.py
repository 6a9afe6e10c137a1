"""One progress bar per phase on a terminal, one line per epoch anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from slim.errors import SlimError
from slim.lightning import SparseTraining
from slim.runs.curves import epoch_metrics
from slim.runs.evaluation import lookup
from slim.runs.schema import Metric


class Progress(Checkpoint):
    """Shows how far a phase is and when it will end. A ``Checkpoint`` for the reason that :class:`Curves` is one.

    Args:
        phase: Name of the phase.
        metric: Shown after every epoch.
        style: ``bar``, ``lines``, ``none``, or ``auto``: a bar where stderr is a terminal.
        sparse: The penalty of a sparse phase, which knows how far the network is on its way to the cut.
    """

    def __init__(self, phase: str, metric: Metric, style: str = "auto", sparse: SparseTraining | None = None) -> None:
        self._phase, self._metric, self._sparse = phase, metric, sparse
        self._style = ("bar" if sys.stderr.isatty() else "lines") if style == "auto" else style
        self._bar: Any = None
        self._task: Any = None
        self._steps = 1
        self._began = (0.0, 0)
        self._shown = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where the run begins, which is not zero for a resumed one; say what the law can do before it acts."""
        forecast = None if self._sparse is None else self._sparse.forecast
        if not trainer.is_global_zero:
            self._style = "none"
        elif forecast is not None and not trainer.global_step:
            # While it is still worth stopping. A run that goes on has said it already.
            print(forecast.line, file=sys.stderr, flush=True)
        self._steps = max(int(trainer.estimated_stepping_batches), 1)
        self._began = (time.monotonic(), trainer.global_step)
        if self._style == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("[bold]{task.description:9}"),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._phase, total=self._steps, completed=trainer.global_step, figures="")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Move the bar, a few times a second at most."""
        if self._bar is not None and (now := time.monotonic()) - self._shown > 0.2:
            self._shown = now
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's figures; validation has run."""
        if self._style == "none":
            return
        figures = ", ".join(self._figures(trainer))
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, figures=figures)
            return
        began, first = self._began
        left = (time.monotonic() - began) / max(trainer.global_step - first, 1) * (self._steps - trainer.global_step)
        epoch = f"{self._phase:9} epoch {trainer.current_epoch + 1:3}/{trainer.max_epochs}"
        print(f"{epoch}  {figures}{', ' if figures else ''}{_duration(left)} left", file=sys.stderr, flush=True)

    def _figures(self, trainer: pl.Trainer) -> list[str]:
        logged = epoch_metrics(trainer)
        loss = next((logged[tag] for tag in ("train/loss", "train_loss") if tag in logged), None)
        figures = [] if loss is None else [f"loss {loss:.3f}"]
        held_out = {tag: value for tag, value in logged.items() if not tag.startswith("train")}
        with contextlib.suppress(SlimError):  # where nothing is held out
            figures.append(f"val {self._metric.shown(lookup(self._metric, held_out, 'val'))}")
        note = "" if self._sparse is None else forecast_line(self._sparse.summary(trainer))
        return [*figures, note] if note else figures

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the finished bar standing."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._steps)
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error is printed below it."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def forecast_line(summary: Mapping[str, float]) -> str:
    """Format :meth:`slim.lightning.SparseTraining.summary` as one line.

    >>> forecast_line({"zero": 0.41, "target": 0.5, "macs": 0.62, "ready": 0.0})
    'zero 0.41 of 0.50, macs 0.62 after the cut'
    """
    found = []
    if "zero" in summary:
        of = f" of {summary['target']:.2f}" if "target" in summary else ""
        found.append(f"zero {summary['zero']:.2f}{of}")
    if "macs" in summary:
        found.append(f"macs {summary['macs']:.2f} after the cut")
    if summary.get("ready"):
        found.append("ready to prune")
    return ", ".join(found)
