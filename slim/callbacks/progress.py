"""One progress bar per phase on a terminal, one line per epoch anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl

from slim.module import Classifier


class Progress(pl.Callback):
    """Shows how far a phase is and when it will end.

    Args:
        phase: Name of the phase.
        steps: Optimizer steps of the whole phase.
        style: ``bar``, ``lines``, ``none``, or ``auto``: a bar where stderr is a terminal.
    """

    def __init__(self, phase: str, steps: int, style: str = "auto") -> None:
        self._phase = phase
        self._steps = max(steps, 1)
        self._style = ("bar" if sys.stderr.isatty() else "lines") if style == "auto" else style
        self._bar: Any = None
        self._task: Any = None
        self._began = (0.0, 0)
        self._shown = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where the run begins, which is not zero for a resumed one."""
        if not trainer.is_global_zero:
            self._style = "none"
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
                TextColumn("{task.fields[told]}"),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._phase, total=self._steps, completed=trainer.global_step, told="")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Move the bar, a few times a second at most."""
        if self._bar is not None and (now := time.monotonic()) - self._shown > 0.2:
            self._shown = now
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """The epoch's figures; validation has run, the module's sums are complete."""
        if self._style == "none":
            return
        told = ", ".join(self._figures(pl_module))
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, told=told)
            return
        began, first = self._began
        left = (time.monotonic() - began) / max(trainer.global_step - first, 1) * (self._steps - trainer.global_step)
        print(
            f"{self._phase:9} epoch {trainer.current_epoch + 1:3}/{trainer.max_epochs}  {told}, {_duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def _figures(self, pl_module: Classifier) -> list[str]:
        found = []
        train, val = (pl_module.means(split) for split in ("train", "val"))
        if train:
            found.append(f"loss {train['loss']:.3f}")
        if val:
            found.append(f"val {100 * val['accuracy']:.2f} %")
        far = pl_module.prospects()
        if "zero" in far:
            found.append(f"zero {far['zero']:.2f}" + (f" of {far['target']:.2f}" if "target" in far else ""))
        if "macs" in far:
            found.append(f"macs {far['macs']:.2f} after the cut")
        if far.get("ready"):
            found.append("ready to prune")
        return found

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the finished bar standing."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._steps)
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
