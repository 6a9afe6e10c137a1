"""Where curves go besides TensorBoard: any of Lightning's loggers, one run of theirs for all phases of one of ours."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from slim.errors import SlimError
from slim.files import read_json, write_json
from slim.runs import processes
from slim.runs.components import Components
from slim.runs.config import plain
from slim.runs.construct import check, construct, target
from slim.runs.curves import RunLogger

FILE = "loggers.json"
TENSORBOARD = "tensorboard"
EXTRAS = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
"""Class -> the extra that brings its package, and the package."""


class PhaseLogger(Logger):
    """One phase of a run in somebody else's logger.

    Args:
        inner: Lightning's logger, which lives as long as the run.
        before: Optimizer steps of the phases before, so that steps go on over phases.
    """

    def __init__(self, inner: Logger, before: int) -> None:
        super().__init__()
        self.inner, self.before = inner, before
        self._written: dict[str, int] = {}

    @property
    def name(self) -> str | None:
        """Of the inner logger's experiment."""
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        """Of the inner logger's run."""
        return self.inner.version

    @property
    def experiment(self) -> Any:
        """What the inner logger writes with."""
        return getattr(self.inner, "experiment", None)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write what has no point at ``step`` of the phase yet."""
        if step is not None:
            metrics = {tag: value for tag, value in metrics.items() if self._written.get(tag) != step}
            self._written |= dict.fromkeys(metrics, step)
        if metrics:
            self.inner.log_metrics(dict(metrics), None if step is None else step + self.before)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        """Nothing: the configuration is told once for the run, not by every module of it."""

    def save(self) -> None:
        """Write what is held back."""
        self.inner.save()


class Loggers:
    """The loggers of a run, apart from TensorBoard's.

    Args:
        parts: Of the run.
        directory: Of the run; a resumed run finds the others' runs again by its ``loggers.json``.

    Attributes:
        apart: Steps of a baseline that the phase does not go on from: a run of its own in TensorBoard, not in others.

    Raises:
        SlimError: A logger's package is not installed, or it cannot be made.
    """

    def __init__(self, parts: Components, directory: Path) -> None:
        self.parts, self.directory, self.apart = parts, directory, 0
        self.wanted = parts.config.logger
        self.inner: dict[str, Logger] = {}
        known = read_json(directory / FILE) if (directory / FILE).is_file() else {}
        if processes.rank() != 0:
            return
        for name, spec in self.wanted.items():
            if name == TENSORBOARD:
                continue
            with _installed(name, spec):
                self.inner[name] = construct(spec, f"logger.{name}", **_options(spec, directory, known.get(name)))
                if known.get(name) is None:
                    self.inner[name].log_hyperparams(plain(parts.config))
            known[name] = self.inner[name].version
        if self.inner:
            write_json(directory / FILE, known)

    def of(self, phase: str, *, before: int, first_step: int) -> list[Logger] | bool:
        """The loggers of a phase, TensorBoard's first; ``False``: there are none."""
        found: list[Logger] = []
        if TENSORBOARD in self.wanted:
            metric = self.parts.config.metric.name
            found.append(RunLogger(self.directory, phase, metric, steps_before=before, purge_step=first_step))
        return [*found, *(PhaseLogger(logger, before + self.apart) for logger in self.inner.values())] or False

    def finish(self, record: Mapping[str, Any]) -> None:
        """Tell the others' runs how this one ended: ``final/metric`` on the test data, and what the network costs."""
        rows: Mapping[str, Mapping[str, Any]] = record.get("rows") or {}
        last = list(rows.values())[-1] if rows else {}
        values = {f"final/{key}": float(value) for key, value in last.items() if isinstance(value, int | float)}
        for logger in self.inner.values():
            logger.log_metrics(values)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        status = "success" if kind is None else "failed"
        for logger in self.inner.values():
            logger.save()
            logger.finalize(status)
            run = getattr(logger, "experiment", None)
            if type(logger).__name__ == "WandbLogger" and run is not None:
                run.finish(exit_code=int(status != "success"))
        self.inner = {}


def check_loggers(specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse loggers that cannot be made, before anything is written.

    Raises:
        SlimError: An unknown class or option, or a package that is not installed.
    """
    for name, spec in specs.items():
        if name == TENSORBOARD and spec:
            raise SlimError(f"logger.tensorboard must be empty: it has no options. Got {dict(spec)}. Leave it out.")
        if name != TENSORBOARD:
            options = {key: value for key, value in spec.items() if key != "_target_"}
            with _installed(name, spec) as extra:
                if extra is not None and find_spec(extra) is None:
                    raise ModuleNotFoundError(name=extra)
                check(target(spec.get("_target_"), f"logger.{name}"), options, f"logger.{name}")


def _options(spec: Mapping[str, Any], directory: Path, version: Any) -> dict[str, Any]:
    """What a run gives a logger that the configuration does not: where, and which of its runs to go on with."""
    parameters = inspect.signature(target(spec.get("_target_"), "logger")).parameters
    given: dict[str, Any] = {"save_dir": str(directory)}
    kind = str(spec["_target_"]).rpartition(".")[2]
    if kind == "MLFlowLogger":
        given = {"run_name": directory.name, "run_id": version}
    elif kind == "WandbLogger":
        given |= {"id": version, "name": directory.name, "resume": None if version is None else "allow"}
    elif kind == "CSVLogger":
        # One that finds its files again would begin by deleting them.
        given |= {"name": "csv", "version": f"part-{len(list(directory.glob('csv/part-*'))) + 1}"}
    return {
        key: value for key, value in given.items() if spec.get(key) is None and (key in parameters or kind in EXTRAS)
    }


class _installed:
    """A logger whose package is missing says which extra brings it."""

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name, self.kind = name, str(spec.get("_target_")).rpartition(".")[2]

    def __enter__(self) -> str | None:
        return EXTRAS.get(self.kind)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise SlimError(
                f"logger={self.name} needs a package. Got none ({error.name or ' '.join(str(error).split())[:100]}). "
                f"Install it with: pip install 'slim-channels[{EXTRAS.get(self.kind, self.name)}]'."
            ) from error
