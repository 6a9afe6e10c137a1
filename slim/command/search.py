"""``hydra/sweeper=optuna``: a study chooses the values; it may be shared, killed and started again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slim.command import space
from slim.command.grid import params
from slim.command.launch import launch, say, threads, workers
from slim.errors import SlimError
from slim.files import write_json
from slim.sweeps import objectives
from slim.sweeps.jobs import Job, assigned, changes_nothing
from slim.sweeps.storage import url_of
from slim.sweeps.study import FOLDER, Settings, Study

POLL = 1.0
"""Seconds between two looks at trials that others run."""


def search(sweeper: Any, arguments: list[str]) -> None:
    """Run trials until the study has ``n_trials``, over all processes that take part.

    Args:
        sweeper: The plugin; ``options`` are those of conf/hydra/sweeper/optuna.yaml.
        arguments: Of the command line.
    """
    from omegaconf import OmegaConf

    config = sweeper.config
    directory = Path(config.hydra.sweep.dir)
    directory.mkdir(parents=True, exist_ok=True)
    launcher: Any = OmegaConf.to_container(config.hydra.launcher)
    settings, fixed = settings_of(sweeper.options, arguments, config, sweeper.hydra_context.config_loader)
    with Study(settings) as study:
        OmegaConf.save(config, directory / "multirun.yaml")
        _Search(study, sweeper, directory, fixed, launcher).run()


def settings_of(options: dict[str, Any], arguments: list[str], config: Any, loader: Any) -> tuple[Settings, list[str]]:
    """What the study is told, and the overrides that its trials share.

    Raises:
        SlimError: Nothing is searched, or an option cannot be.
    """
    searched, fixed = space.parse([*params(options), *arguments], loader)
    if not searched:
        raise SlimError(
            "A search needs values to choose from. Got none. Give e.g. 'prune.ratio=interval(0.3,0.8)' or "
            "hydra.sweeper.params."
        )
    given = options["objectives"]
    names = [given] if isinstance(given, str) else list(given)
    kept = [item for item in fixed if not changes_nothing(_key(item))]
    return Settings(
        storage=url_of(options["storage"], Path(config.hydra.sweep.dir)),
        name=str(options["study_name"] or config.name),
        objectives=names,
        directions=objectives.directions(names, config.metric.mode, options["direction"]),
        sampler=options["sampler"],
        pruner=options["pruner"],
        space=searched,
        fixed=kept,
        n_trials=options["n_trials"],
        attempts=options["attempts"],
        heartbeat=options["heartbeat"],
        grace=options["grace"],
    ), fixed


class _Search:
    def __init__(self, study: Study, sweeper: Any, directory: Path, fixed: list[str], launcher: Any) -> None:
        self.study, self.launcher, self.directory, self.fixed = study, sweeper.launcher, directory, fixed
        self.names = study.settings.objectives
        self.size: int = sweeper.options["n_jobs"] or workers(launcher)
        self.threads = threads(launcher, self.size)

    def run(self) -> None:
        """Ask, launch and tell, until there is nothing left to do for anyone."""
        told: set[int] = set()
        while True:
            for number in self.study.recover():
                say(f"trial {number}: whoever ran it is gone; it is in line again")
            if trials := self.study.ask(self.size):
                self._batch(trials)
                continue
            others = self.study.running()
            if not others:
                return
            if set(others) - told:
                told |= set(others)
                say("waiting for " + ", ".join(f"trial {number} ({owner})" for number, owner in others.items()))
            time.sleep(POLL)

    def _batch(self, trials: list[Any]) -> None:
        batch = {trial.number: self._job(trial) for trial in trials}
        done = {number: job for number, job in batch.items() if job.outcome().status == "finished"}
        for number, job in done.items():  # the same values once more
            self._tell(number, job)
        todo = {number: job for number, job in batch.items() if number not in done}
        with self._given_back(todo):
            launch(self.launcher, list({job.number: job for job in todo.values()}.values()))
            for number in list(todo):
                self._tell(number, todo.pop(number))

    def _job(self, trial: Any) -> Job:
        overrides = [*self.fixed, *(space.line(key, value) for key, value in trial.params.items())]
        wanted = self.study.settings
        told = None
        if wanted.pruner and wanted.pruner.get("_target_"):
            told = {
                "storage": wanted.storage,
                "study": wanted.name,
                "trial": trial.number,
                "pruner": dict(wanted.pruner),
            }
        wish = int(trial.user_attrs.get(FOLDER, trial.number))
        (job,) = assigned(self.directory, [overrides], wish, threads=self.threads, trial=told)
        trial.set_user_attr(FOLDER, str(job.number))
        return job

    def _tell(self, number: int, job: Job) -> None:
        found = job.outcome()
        if found.status == "open":
            again = self.study.give_back(number)
            say(f"trial {number}: its worker died; {'it is in line again' if again else 'it counts as failed'}")
            return
        values = objectives.values(found.record, self.names) if found.status == "finished" else []
        self.study.tell(number, values, folder=str(job.number), status=found.status, error=found.error)
        self._best()

    @contextmanager
    def _given_back(self, todo: dict[int, Job]) -> Iterator[None]:
        """Trials that this process will not end are for others, at once."""
        try:
            yield
        finally:
            if sys.exc_info()[0] is not None:
                for number in todo:
                    self.study.give_back(number, died=False)

    def _best(self) -> None:
        """Leave the best trials so far beside the table."""
        best = [
            {"trial": trial.number, "folder": trial.user_attrs.get(FOLDER), "params": trial.params,
             "values": dict(zip(self.names, trial.values, strict=True))}
            for trial in self.study.study.best_trials
        ]  # fmt: skip
        write_json(self.directory / "best.json", best)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
