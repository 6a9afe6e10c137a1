"""A search, whatever happens to its jobs and to itself."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf

from slim.command.grid import grid
from slim.command.search import search
from slim.files import read_json
from slim.runs.signals import Interrupted
from slim.sweeps.jobs import identity
from slim.sweeps.storage import connect
from tests.sweeps.cheap import CheapLauncher

OPTIONS: dict[str, Any] = {
    "params": {"prune.ratio": "interval(0.1,0.9)"},
    "objectives": ["val", "macs"],
    "direction": None,
    "n_trials": 4,
    "n_jobs": None,
    "storage": None,
    "study_name": None,
    "attempts": 2,
    "heartbeat": 30,
    "grace": 300,
    "sampler": {"_target_": "optuna.samplers.RandomSampler", "seed": 0},
    "pruner": None,
}


def sweeper(place: Path, die: Any = lambda overrides: None, **options: Any) -> Any:
    config = {"name": "cheap", "metric": {"mode": "max"}, "hydra": {"sweep": {"dir": str(place)}, "launcher": {}}}
    return SimpleNamespace(
        options={**OPTIONS, "storage": f"journal:///{place / 'study.log'}", **options},
        config=OmegaConf.create(config),
        hydra_context=SimpleNamespace(config_loader=None),
        launcher=CheapLauncher(place, die),
    )


def trials(place: Path) -> list[Any]:
    study = optuna.load_study(study_name="cheap", storage=connect(f"journal:///{place / 'study.log'}"))
    return [trial for trial in study.trials if not trial.user_attrs.get("lost")]


def test_a_search_tells_what_its_jobs_left(tmp_path: Path) -> None:
    plugin = sweeper(tmp_path)
    search(plugin, ["a=1"])
    found = trials(tmp_path)
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 4
    for trial in found:
        ratio = trial.params["prune.ratio"]
        assert trial.values == [1 - ratio**2, round(1000 * (1 - ratio))]
    best = read_json(tmp_path / "best.json")
    assert {item["trial"] for item in best} == {0, 1, 2, 3}, "accuracy against MACs: each is best at its MACs"
    assert all((tmp_path / item["folder"] / "report.json").is_file() for item in best)


def test_a_job_that_kills_its_worker_once_is_run_again_in_its_folder(tmp_path: Path) -> None:
    dead: list[str] = []

    def die(overrides: list[str]) -> None:
        if not dead:
            dead.extend(overrides)
            raise RuntimeError("a worker was killed")

    plugin = sweeper(tmp_path, die)
    search(plugin, ["a=1"])
    assert len(trials(tmp_path)) == 4
    assert plugin.launcher.ran[0] == dead, "first of all that which was lost"
    assert [trial.user_attrs["folder"] for trial in trials(tmp_path)] == ["0", "2", "3", "4"]


def test_a_job_that_always_kills_its_worker_fails_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def die(overrides: list[str]) -> None:
        if "seed=2" in overrides:
            raise RuntimeError("out of memory")

    options = {"params": {"seed": "1,2,3"}, "sampler": {"_target_": "optuna.samplers.GridSampler"}, "n_trials": 3}
    search(sweeper(tmp_path, die, **options), ["a=1"])
    assert Counter(trial.state.name for trial in trials(tmp_path)) == {"COMPLETE": 2, "FAIL": 1}
    assert "out of memory" in capfd.readouterr().err


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT is heard, which what a shell runs in the background ignores."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_gives_the_trial_back_and_the_next_process_takes_it_first(
    name: str, tmp_path: Path, ctrl_c: None
) -> None:
    def die(overrides: list[str]) -> None:
        if plugin.launcher.ran:
            stopped.extend(overrides)
            os.kill(os.getpid(), getattr(signal, name))

    stopped: list[str] = []
    plugin = sweeper(tmp_path, die)
    with pytest.raises(Interrupted, match=f"by {name}.*hydra.sweep.dir={tmp_path} goes on"):
        search(plugin, ["a=1"])
    again = sweeper(tmp_path)
    search(again, ["a=1"])
    assert again.launcher.ran[0] == stopped
    assert len(again.launcher.ran) == 3
    assert len(trials(tmp_path)) == 4


def test_failed_and_nan_trials_are_survived(tmp_path: Path) -> None:
    options = {"params": {"seed": "1,13,14"}, "sampler": {"_target_": "optuna.samplers.GridSampler"}, "n_trials": 3}
    search(sweeper(tmp_path, **options), ["a=1"])
    found = {trial.params["seed"]: trial for trial in trials(tmp_path)}
    assert {seed: trial.state.name for seed, trial in found.items()} == {1: "COMPLETE", 13: "FAIL", 14: "FAIL"}
    assert "finite" in found[13].user_attrs["error"]
    assert "nan" in found[14].user_attrs["error"]


def test_the_same_values_are_not_run_twice(tmp_path: Path) -> None:
    plugin = sweeper(tmp_path, params={"seed": "1,2"}, n_trials=8)
    search(plugin, ["a=1"])
    assert len(plugin.launcher.ran) == 2
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE"] * 8


def test_a_batch_has_as_many_trials_as_there_are_workers(tmp_path: Path) -> None:
    plugin = sweeper(tmp_path, n_jobs=3)
    launched: list[int] = []
    launch = plugin.launcher.launch
    plugin.launcher.launch = lambda jobs, initial_job_idx: (launched.append(len(jobs)), launch(jobs, initial_job_idx))
    search(plugin, ["a=1"])
    assert launched == [3, 1]


# The grid


def test_a_grid_runs_what_is_not_finished(tmp_path: Path) -> None:
    def die(overrides: list[str]) -> None:
        if "seed=2" in overrides:
            raise RuntimeError("out of memory")

    first = sweeper(tmp_path, die, params=None, attempts=1)
    grid(first, ["seed=1,2,13"])
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"0", "1", "2"}
    assert "worker died" in read_json(tmp_path / "1" / "report.json")["error"]
    again = sweeper(tmp_path, params=None)
    grid(again, ["seed=4,13,2,1"])
    assert again.launcher.ran == [["seed=4"], ["seed=13"], ["seed=2"]], "a failed job gets another chance"
    assert json.loads((tmp_path / "3" / "job.json").read_text())["identity"] == identity(["seed=4"])
    assert read_json(tmp_path / "1" / "report.json")["status"] == "finished"


def test_a_search_leaves_the_jobs_of_others_in_its_directory_alone(tmp_path: Path) -> None:
    """Those of a grid, and of another study: their figures are not those of its trials."""
    grid(sweeper(tmp_path, params=None, max_batch_size=None), ["a=1", "prune.ratio=0.95,0.97"])
    search(sweeper(tmp_path, n_trials=2), ["a=1"])
    search(sweeper(tmp_path, n_trials=2, study_name="cheap again"), ["a=2"])
    for name in ("cheap", "cheap again"):
        study = optuna.load_study(study_name=name, storage=connect(f"journal:///{tmp_path / 'study.log'}"))
        assert [trial.values[0] for trial in study.trials] == [
            1 - trial.params["prune.ratio"] ** 2 for trial in study.trials
        ]
    assert len({read_json(path)["identity"] for path in tmp_path.glob("*/job.json")}) == 6
