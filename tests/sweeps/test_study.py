"""A study goes on after any process that took part was killed, and no trial is run twice."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from slim.errors import SlimError
from slim.runs.watch import Pruned
from slim.sweeps.owners import Owner
from slim.sweeps.storage import close, connect, url_of
from slim.sweeps.study import LOST, OWNER, Settings, Study
from slim.sweeps.watch import TrialWatch
from tests.sweeps.sharing import SETTINGS, SPACE, TPE, take_part, work

both = pytest.mark.parametrize("kind", ["sqlite", "journal"])


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    kind = request.node.callspec.params.get("kind", "journal") if hasattr(request.node, "callspec") else "journal"
    return replace(SETTINGS, storage=f"{kind}:///{tmp_path / 'study'}")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every study of a test is closed in the end."""
    made: list[Study] = []
    monkeypatch.setattr(
        Study, "__post_init__", lambda self, before=Study.__post_init__: (made.append(self), before(self))
    )
    yield
    for study in made:
        if hasattr(study, "storage"):
            study.close()


pytestmark = pytest.mark.usefixtures("opened")


def counted(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.study.trials if not trial.user_attrs.get(LOST)]


def as_others(study: Study, number: int, owner: Owner) -> None:
    """The trial belongs to another process."""
    study.study._storage.set_trial_user_attr(study.study.trials[number]._trial_id, OWNER, owner.plain())


DEAD = replace(Owner.me(), began="before this machine was started")
FAR = Owner("another-machine", 1, "")


def test_a_study_lies_in_whatever_folder(tmp_path: Path) -> None:
    """Optuna takes braces for something to fill in."""
    place = tmp_path / "a {b} $c #[1]é=,"
    place.mkdir()
    close(connect(url_of(None, place)))
    assert [path.name for path in place.iterdir()] == ["study.db"] and len(list(tmp_path.iterdir())) == 1


@both
def test_a_sweep_that_was_killed_goes_on_with_the_values_it_would_have_had(
    kind: str, settings: Settings, tmp_path: Path
) -> None:
    whole = Study(replace(settings, storage=f"journal:///{tmp_path / 'whole'}"))
    assert len(work(whole)) == 6
    first = Study(settings)
    work(first, 2)
    (lost,) = first.ask(1)
    as_others(first, lost.number, DEAD)
    again = Study(settings)
    assert again.recover() == [lost.number]
    assert again.recover() == []
    assert len(work(again)) == 4
    assert counted(again) == counted(whole)
    assert again.counted() == 6
    assert again.ask(1) == []


def test_trials_of_a_living_process_are_left_alone(settings: Settings) -> None:
    first, second = Study(settings), Study(settings)
    mine = first.ask(6)
    assert second.recover() == []
    assert second.ask(1) == []
    assert set(second.running()) == {trial.number for trial in mine}


def test_a_machine_without_a_sign_of_life_counts_as_dead(settings: Settings) -> None:
    patient, hasty = Study(replace(settings, grace=1e6)), Study(replace(settings, grace=0.0))
    (trial,) = patient.ask(1)
    as_others(patient, trial.number, FAR)
    assert patient.recover() == []
    assert hasty.recover() == [trial.number]
    (copy,) = hasty.ask(1)
    assert copy.params == trial.params
    assert copy.user_attrs["folder"] == str(trial.number)


def test_a_trial_that_kills_whoever_runs_it_fails_in_the_end(settings: Settings) -> None:
    study = Study(replace(settings, n_trials=1, attempts=2))
    for attempt in (True, False):
        (trial,) = study.ask(1)
        assert study.give_back(trial.number) is attempt
    assert study.ask(1) == []
    assert [trial.state.name for trial in study.study.trials if not trial.user_attrs.get(LOST)] == ["FAIL"]


@both
def test_only_one_of_two_takes_what_a_dead_process_left(kind: str, settings: Settings) -> None:
    first, second = Study(settings), Study(settings)
    (trial,) = first.ask(1)
    assert first._lose(trial.number)
    assert not second._lose(trial.number)


@both
def test_failures_and_nan_are_recorded_and_count(kind: str, settings: Settings) -> None:
    study = Study(replace(settings, n_trials=3))
    failed, nan, good = study.ask(3)
    study.tell(failed.number, [], folder="0", status="failed", error="The loss must be finite.")
    study.tell(nan.number, [math.nan, 1.0], folder="1", status="finished")
    study.tell(good.number, [0.5, 1.0], folder="2", status="finished")
    trials = study.study.trials
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert "finite" in trials[0].user_attrs["error"]
    assert "nan" in trials[1].user_attrs["error"]
    assert study.ask(1) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": ["maximize"]}, "keeps its objectives"),
        ({"objectives": ["val", "latency"]}, "keeps its objectives"),
        ({"fixed": ["sparse.epochs=3"]}, "share all overrides"),
        ({"space": {"prune.ratio": optuna.distributions.IntDistribution(0, 3)}}, "keeps its search space"),
        ({"pruner": {"_target_": "optuna.pruners.MedianPruner"}}, "compares curves of one objective"),
        ({"storage": "nosuchdb://host/x"}, "storage must open"),
        ({"sampler": {"_target_": "optuna.samplers.NoSuch"}}, "must exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings = Settings(f"journal:///{tmp_path / 's'}", "study", ["maximize", "minimize"], TPE, None, SPACE)
    work(Study(settings), 1)
    with pytest.raises(SlimError, match=words) as caught:
        Study(replace(settings, **change))
    assert "\n" not in str(caught.value)


SAMPLERS = ["TPESampler", "RandomSampler", "NSGAIISampler", "QMCSampler", "BruteForceSampler"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_processes_at_the_same_moment_draw_different_values(name: str, tmp_path: Path) -> None:
    space = {"seed": optuna.distributions.IntDistribution(0, 10**6)}
    if name == "BruteForceSampler":
        space = {"seed": optuna.distributions.IntDistribution(0, 7)}
    sampler = {"_target_": f"optuna.samplers.{name}", "seed": 0}
    settings = Settings(f"journal:///{tmp_path / 's.log'}", "study", ["maximize"], sampler, None, space)
    studies = [Study(settings), Study(settings)]
    drawn = [studies[index % 2].ask(1)[0].params["seed"] for index in range(4)]
    assert len(set(drawn)) == 4


# Pruning


@pytest.mark.parametrize("pruner", ["MedianPruner", "HyperbandPruner"])
def test_a_hopeless_trial_is_pruned_and_a_good_one_is_not(pruner: str, tmp_path: Path) -> None:
    options = {"MedianPruner": {"n_startup_trials": 2}, "HyperbandPruner": {"max_resource": 8}}[pruner]
    told = {"_target_": f"optuna.pruners.{pruner}", **options}
    settings = Settings(f"journal:///{tmp_path / 's'}", "study", ["maximize"], TPE, told, SPACE, n_trials=99)
    study = Study(settings)
    ends = {}
    for level in (0.5, 0.6, 0.7, 0.8, 0.0, 0.9):
        (trial,) = study.ask(1)
        watch = TrialWatch({"storage": settings.storage, "study": "study", "trial": trial.number, "pruner": told})
        try:
            for epoch in range(8):
                watch(epoch, level + 0.01 * epoch)
            status = "finished"
        except Pruned as stop:
            assert "epoch" in str(stop)
            status = "pruned"
        study.tell(trial.number, [level], folder="0", status=status)
        ends[level] = study.study.trials[trial.number].state.name
    assert ends[0.0] == "PRUNED"
    assert ends[0.9] == "COMPLETE"


def test_a_resumed_run_may_report_an_epoch_again(tmp_path: Path) -> None:
    told = {"_target_": "optuna.pruners.MedianPruner"}
    settings = Settings(f"journal:///{tmp_path / 's'}", "study", ["maximize"], TPE, told, SPACE)
    (trial,) = Study(settings).ask(1)
    for _ in range(2):
        watch = TrialWatch({"storage": settings.storage, "study": "study", "trial": trial.number, "pruner": told})
        for epoch in range(2):
            watch(epoch, 0.5)
    assert list(Study(settings).study.trials[0].intermediate_values.values()) == [0.5, 0.5]


# Processes

FORKS = multiprocessing.get_context("forkserver")


@pytest.mark.timeout(300)
def test_processes_that_share_a_study_never_run_the_same_trial(tmp_path: Path) -> None:
    """One of three is killed in the middle of a trial; another one runs that, and all of them 12 in all."""
    url, pipes, processes = f"sqlite:///{tmp_path / 'study.db'}", [], []
    for _ in range(3):
        mine, theirs = FORKS.Pipe()
        process = FORKS.Process(target=take_part, args=(url, theirs, 12))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    under_way = [pipe.recv() for pipe in pipes]  # or EOFError, when a process ends before
    assert len(set(under_way)) == 3
    os.kill(processes[0].pid or 0, signal.SIGKILL)
    processes[0].join()
    for pipe in pipes[1:]:
        pipe.send("go on")
    done = [number for pipe in pipes[1:] for number in pipe.recv()]
    for process, pipe in zip(processes, pipes, strict=True):
        process.join()
        process.close()
        pipe.close()
    study = Study(replace(SETTINGS, storage=url, n_trials=12))
    assert study.recover() == [under_way[0]]
    numbers = [*done, *work(study)]
    assert len(numbers) == len(set(numbers)) == 12
    assert under_way[0] not in numbers
    assert study.counted() == 12
    assert len({tuple(params.items()) for params in counted(study)}) == 12
