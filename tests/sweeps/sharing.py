"""A study for tests, and a process that takes part in one."""

from __future__ import annotations

import math
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import optuna

from slim.sweeps.study import Settings, Study

SPACE = {
    "prune.ratio": optuna.distributions.FloatDistribution(0.1, 0.9),
    "seed": optuna.distributions.IntDistribution(0, 9),
}
TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 3}
SETTINGS = Settings("", "study", ["maximize", "minimize"], TPE, None, SPACE, n_trials=6)


def value(params: dict[str, Any]) -> list[float]:
    return [1 - params["prune.ratio"] ** 2, 1 - params["prune.ratio"] + params["seed"]]


def work(study: Study, count: float = math.inf) -> list[int]:
    """Run trials until there are none, or ``count``; returns their numbers."""
    done: list[int] = []
    while len(done) < count and (trials := study.ask(1)):
        study.tell(trials[0].number, value(trials[0].params), folder=str(trials[0].number), status="finished")
        done.append(trials[0].number)
    return done


def take_part(url: str, pipe: Connection, total: int) -> None:
    """Send the number of a trial that is under way, and after an answer those of all that were run here."""
    with Study(replace(SETTINGS, storage=url, n_trials=total)) as study:
        (trial,) = study.ask(1)
        pipe.send(trial.number)
        pipe.recv()
        study.tell(trial.number, value(trial.params), folder="0", status="finished")
        pipe.send([trial.number, *work(study)])
