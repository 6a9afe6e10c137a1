"""Jobs in other processes: Hydra's launchers with workers that are killed. The jobs are cheap, the processes real."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from experiments.chaos.harness import start as started
from slim.command.compose import hydra_job, quoted
from slim.command.launch import cores, threads, workers
from slim.command.ray_launcher import start
from slim.command.sweep import _check_plugins, _register
from slim.errors import SlimError
from tests.sweeps.cheap import CheapJob
from tests.waiting import ended


def launching(argv: list[str]) -> int:
    """Hydra's part of ``train.py --multirun``; the job of seed 2 kills its worker the first time."""
    if "hydra/launcher=submitit_local" in argv:
        from submitit.core.core import Job

        Job._results_timeout_s = 1  # of 15, for which it looks for the result of a job that was killed
    _register()
    hydra_job(["--multirun", *argv], CheapJob(kill="seed=2"))
    return 0


def sweep(place: Path, *overrides: str) -> str:
    """Two jobs, of which the one with seed 2 kills its worker the first time; returns what a user would read.

    In a process of its own: what launchers leave behind, processes and files, ends with it.
    """
    said = place.with_name(f"{place.name}.stderr")
    process = started([*overrides, "seed=1,2", f"hydra.sweep.dir={quoted(place)}"], said, main=launching)
    assert ended(process, within=240) == 0, said.read_text()[-2000:]
    return said.read_text()


def check(place: Path) -> None:
    """Every job is done, whoever was killed meanwhile, and none was done twice."""
    for number in range(2):
        assert json.loads((place / str(number) / "report.json").read_text())["status"] == "finished"
        assert len((place / str(number) / "began").read_text().split()) == 1
    assert (place / "1" / "killed").exists()


def test_joblib(tmp_path: Path) -> None:
    told = sweep(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    check(tmp_path)
    assert "A worker died" in told
    assert "job 1: its worker died; begun again" in told
    assert (tmp_path / "1" / "threads").read_text() == str(max(cores() // 2, 1))


@pytest.mark.chaos
def test_submitit_local(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    told = sweep(tmp_path, "hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1")
    check(tmp_path)
    assert "job 1: its worker died; begun again" in told
    assert (tmp_path / "1" / "threads").read_text() == "1"


def test_ray_is_not_left_to_start_workers_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray has no wheel for this Python")
    monkeypatch.setattr(sys, "executable", "/a folder/python")
    with pytest.raises(SlimError, match=r"path has spaces\. Got /a folder/python"):
        start({"num_cpus": 1})


@pytest.mark.chaos
@pytest.mark.skipif(" " in sys.executable, reason="Ray cannot start a Python whose path has spaces")
def test_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray has no wheel for this Python")
    # Ray's workers are nice, and would wait until every other test is done.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    told = sweep(tmp_path, "hydra/launcher=ray", "hydra.launcher.init.num_cpus=2")
    check(tmp_path)
    assert "job 1: its worker died; begun again" in told
    assert all((tmp_path / str(number) / "threads").read_text() == "1" for number in range(2))
    assert all(int((tmp_path / str(number) / "began").read_text()) != os.getpid() for number in range(2))


def test_jobs_share_the_cores() -> None:
    for count in (1, 2, 3, 100):
        each = threads({"_target_": "x.JoblibLauncher", "n_jobs": count}, 10**6)
        assert each is not None and each >= 1
        assert each * count <= cores() or each == 1
    assert threads({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 1) is None
    assert workers({"n_jobs": -1}) == cores()
    assert workers({"init": {"num_cpus": 8}, "remote": {"num_cpus": 2}}) == 4


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for choice, extra in [
        ("hydra/launcher=joblib", "sweep"),
        ("hydra/launcher=ray", "ray"),
        ("hydra/sweeper=optuna", "sweep"),
    ]:
        with pytest.raises(SlimError, match=rf"slim-channels\[{extra}\]"):
            _check_plugins([choice])
