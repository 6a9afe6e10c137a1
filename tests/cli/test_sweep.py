"""A sweep: a directory per job, one table at the end, and a failing job does not take the others along."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest

import train
from experiments.chaos.harness import exit_code, start
from slim.sweeps.storage import connect
from tests.report.board import hparams
from tests.runs.tiny import TINY
from tests.waiting import until


def line(*overrides: str) -> list[str]:
    given = {item.partition("=")[0] for item in overrides}
    # A list in brackets is a value, one without them a sweep.
    return ["--multirun", "+experiment=vgg_slim", *(i for i in TINY if i.partition("=")[0] not in given), *overrides]


def test_a_failing_job_does_not_take_the_others_along(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "sweep"
    given = ["sparse.epochs=1", "finetune.epochs=1", "seed=0", "prune.ratio=0.3,1.5,0.7"]
    assert train.main([*line(*given), f"hydra.sweep.dir={place}"]) == 1
    assert train.main([*line(*given[:-1], "prune.ratio=0.3,0.7"), f"hydra.sweep.dir={place}"]) == 0, (
        "of those asked for"
    )
    reports = [json.loads((place / str(job) / "report.json").read_text()) for job in range(3)]
    assert [report["status"] for report in reports] == ["finished", "failed", "finished"]
    assert reports[0]["rows"]["finetuned"]["macs"] > reports[2]["rows"]["finetuned"]["macs"]
    assert "ratio must be in [0, 1)" in reports[1]["error"]
    rows = [hparams(place / job / "overview") for job in "02"]
    assert [row["prune.ratio"] for row in rows] == [0.3, 0.7], "the default as well: the sweep varies it"
    assert all("seed" not in row for row in rows)
    out, err = capfd.readouterr()
    assert str(place) in out
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "bad",
    [
        *("prune.ratoi=0.3,0.5", "model=vgg,resnt", "prune.ratio=1.5,2.5", "trainer.devices=2"),
        *("output=/home/andré", "resume=outputs/run", "penalty.lam=1e-3,1e-2 sparse.shrink=3"),
        "task=sensitivity checkpoint=a,b",
        *("seed=interval(1,5)", "seed=range(1,1)", "penalty=glob(zz*)", "seed=1,2 hydra.sweeper.max_batch_size=-1"),
        "seed=1,2 hydra.sweep.subdir=${hydra.job.override_dirname}",
        *("seed=1,2 hydra.sweeper.attempts=a", "seed=1,2 hydra/launcher=joblib hydra.launcher.n_jobs=0"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["--multirun", *bad.split()]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_jobs_have_the_strength_that_the_sweep_gives_them(tmp_path: Path) -> None:
    """Not one that follows from their recipe's length."""
    given = [item for item in line("phases=[sparse]", "sparse.epochs=1") if not item.startswith("sparse.shrink")]
    assert train.main([*given, "penalty.lam=1e-3,1e-2", f"hydra.sweep.dir={tmp_path}"]) == 0
    notes = [json.loads((tmp_path / job / "report.json").read_text())["notes"][0] for job in "01"]
    assert ["lam=0.001 can" in notes[0], "lam=0.01 can" in notes[1]] == [True, True]


def test_jobs_are_checked_as_a_single_run_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What only a try tells, too, and before anything trains."""
    detector = ["+experiment=detection_slim", "model.name=ssdlite_resnet8", "trainer.accelerator=cpu", "figures=false"]
    scenes = ["data.image_size=32", "data.scenes=8", "data.val_scenes=1", "data.test_scenes=1", "data.batch_size=4"]
    taught = ["phases=[baseline,sparse]", "sparse.distill.teacher=dense", "seed=1,2"]
    assert train.main(["--multirun", *detector, *scenes, *taught, f"hydra.sweep.dir={tmp_path}/a"]) == 1
    given = line("phases=[sparse]", "sparse.epochs=1", "sparse.shrink=3", "penalty.lam=null,1e-3")
    assert train.main([*given, f"hydra.sweep.dir={tmp_path}/b"]) == 1
    errors = [json.loads((tmp_path / job / "report.json").read_text()).get("error") for job in ("a/0", "a/1", "b/1")]
    assert errors[0] == errors[1]
    assert errors[0].startswith("A teacher must say something of classes")
    assert errors[2].startswith("lam follows from sparse.shrink")
    assert not list(tmp_path.glob("a/*/baseline"))
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert told.index(f"1 of 2 jobs cannot run. {errors[2]}") < told.rindex("── job 0:")


DENSE = ["phases=[baseline]", "baseline.epochs=1"]


@pytest.mark.parametrize("several", [[], ["--multirun"]])
def test_a_run_that_nobody_hears_is_not_done(
    several: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python train.py ... 2>&1 | head -1``."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    place = [f"hydra.run.dir={tmp_path}/0", f"hydra.sweep.dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Gone())
        assert train.main([*several, *line(*DENSE)[1:], *place]) == 1
    assert not (tmp_path / "0" / "model.safetensors").exists()


def reports(place: Path) -> dict[str, Any]:
    """What each job left, and when."""
    found = sorted(place.glob("*/report.json"))
    return {path.parent.name: (json.loads(path.read_text())["status"], path.stat().st_mtime_ns) for path in found}


def test_a_sweep_that_is_started_again_runs_what_is_not_finished(tmp_path: Path) -> None:
    """However its jobs are ordered, and whatever else is in it by now; a job's folder stays its own."""
    place = tmp_path / "sweep"
    again = [*line(*DENSE, "hydra/sweeper=basic"), f"hydra.sweep.dir={place}"]
    assert train.main([*again, "seed=1"]) == 0
    before = reports(place)
    assert train.main([*again, "seed=2,1"]) == 0
    after = reports(place)
    assert [status for status, _ in after.values()] == ["finished"] * 2
    assert after["0"] == before["0"]
    seeds = [json.loads((place / name / "report.json").read_text())["seed"] for name in after]
    assert seeds == [1, 2]
    assert "| 1 | seed=2 |" in (place / "sweep.md").read_text()
    assert train.main([*again, "seed=1,2", "logger=csv", "logger.csv.flush_logs_every_n_steps=9"]) == 0
    assert reports(place) == after, "where curves go changes no job"


def test_a_search_goes_on_until_its_total(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two objectives; a job that fails is a trial that failed; what is there is not run again."""
    place = tmp_path / "sweep"
    search = [
        *line(*DENSE, "hydra/sweeper=optuna", "hydra/sweeper/sampler=bruteforce"),
        f"hydra.sweep.dir={place}",
        "hydra.sweeper.objectives=[val,macs]",
        "data.batch_size=32,100000",
    ]
    assert train.main([*search, "hydra.sweeper.n_trials=1"]) in (0, 1)
    before = reports(place)
    assert len(before) == 1
    assert train.main([*search, "hydra.sweeper.n_trials=2"]) == 0
    after = reports(place)
    assert sorted(status for status, _ in after.values()) == ["failed", "finished"]
    assert after["0"] == before["0"]
    (best,) = json.loads((place / "best.json").read_text())
    assert best["params"] == {"data.batch_size": 32}
    assert set(best["values"]) == {"val", "macs"}
    capfd.readouterr()
    assert train.main([*search, "hydra.sweeper.n_trials=3", "seed=3"]) == 2
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith("Trials of a study share all overrides but those that are searched. Got other values for s")


def test_hopeless_trials_are_pruned_and_the_search_goes_on(tmp_path: Path) -> None:
    """By their curve, in a real training; they are trials of the study, and rows of the table and the page."""
    place = tmp_path / "sweep"
    lower, rates = 0.25, "0.5,1e-8"
    search = [
        *line("phases=[baseline]", "data.limit_train=1000", "figures=true", "hydra/sweeper=optuna"),
        *(f"baseline.lr={rates}", "hydra/sweeper/sampler=bruteforce"),
        *("hydra.sweeper.n_trials=2", "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner"),
        f"+hydra.sweeper.pruner.lower={lower}",
        f"hydra.sweep.dir={place}",
    ]
    assert train.main(search) == 0
    left = reports(place)
    assert sorted(status for status, _ in left.values()) == ["finished", "pruned"]
    study = optuna.load_study(study_name="vgg_slim", storage=connect(f"sqlite:///{place / 'study.db'}"))
    for trial in study.trials:
        curve, hopeless = trial.intermediate_values, trial.params["baseline.lr"] < 0.1
        assert list(curve) == ([0] if hopeless else [0, 1]), "which ends a trial early"
        assert (curve[0] < lower) == hopeless
        assert trial.state.name == ("PRUNED" if hopeless else "COMPLETE")
        assert left[trial.user_attrs["folder"]][0] == ("pruned" if hopeless else "finished")
        if not hopeless:
            record = json.loads((place / trial.user_attrs["folder"] / "report.json").read_text())
            assert list(curve.values()) == record["history"]["baseline"]["val_accuracy"]
    (best,) = json.loads((place / "best.json").read_text())
    assert best["params"] == {"baseline.lr": 0.5}
    assert (place / "sweep.md").read_text().count("Pruned by the study after epoch 1, at 0.") == 1
    page = (place / "sweep.html").read_text()
    assert page.count("<tr class=pruned>") == 1
    assert "1 finished, 1 pruned" in page or "1 pruned, 1 finished" in page
    (command,) = re.findall("<pre>(.*?)</pre>", page, re.DOTALL)
    assert shlex.split(html.unescape(command)) == ["python", "train.py", "-m", *search[1:]]


def test_a_search_that_was_killed_goes_on_in_the_middle_of_a_trial(tmp_path: Path) -> None:
    place, told = tmp_path / "sweep", tmp_path / "told"
    search = [
        *line("phases=[baseline]", "baseline.epochs=2", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"),
        f"hydra.sweep.dir={place}",
        "optimizer.lr=interval(0.01,0.1)",
    ]
    process = start(search, told)
    until((place / "1" / "baseline" / "last.ckpt").is_file, process.is_alive)
    os.kill(process.pid or 0, signal.SIGKILL)
    assert exit_code(process) == -signal.SIGKILL
    killed = json.loads((place / "1" / "job.json").read_text())
    before = reports(place)
    assert list(before) == ["0"]
    assert "\n| 0 | " in (place / "sweep.md").read_text(), "table and front after every job"
    assert [best["folder"] for best in json.loads((place / "best.json").read_text())] == ["0"]
    assert train.main(search) == 0
    after = reports(place)
    assert list(after) == ["0", "1"]
    assert after["0"] == before["0"]
    assert json.loads((place / "1" / "job.json").read_text())["identity"] == killed["identity"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (["prune.ratio=0.3"], "needs values to choose from"),
        (["prune.ratio=interval(0.1,0.9)", "hydra.sweeper.objectives=[accuracy]"], "objectives must be known"),
        (["prune.ratio=interval(0.1,0.9)", "hydra.sweeper.objectives=accuracy"], "objectives=accuracy. "),
        (["prune.ratio=interval(1.1,1.9)"], "ratio must be in"),
        (["model=vgg,resnt"], "Did you mean resnet"),
        (["prune.ratio=interval(0.1,0.9)", "hydra/sweeper/sampler=grid"], "A grid needs values"),
        (["seed=1,2", "+hydra.sweeper.sampler.startup=3"], "sampler.startup must be an option"),
        (["seed=1,2", "hydra/sweeper/pruner=median", "hydra.sweeper.objectives=[val,macs]"], "of one objective"),
        (["penalty=glob(zz*)"], "which no name fits"),
        (["seed=1,2", "hydra.sweeper.n_jobs=-1"], "n_jobs must be a whole number"),
        (["seed=1,2", "hydra.sweeper.heartbeat=a"], "heartbeat must be a number"),
    ],
)
def test_a_search_that_cannot_work_is_refused(
    bad: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["--multirun", "hydra/sweeper=optuna", *bad]) == 2
    told = capfd.readouterr().err.strip()
    assert words in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
