"""Curves beside TensorBoard: one run of theirs for a run of ours, whatever interrupts it; nothing needs a network."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import train
from experiments.chaos.harness import start
from slim.command.compose import quoted
from slim.runs.checkpoint import Saver
from tests.runs.tiny import TINY, run
from tests.waiting import ended

SHORT = ("phases=[sparse,prune,finetune]", "sparse.epochs=1", "finetune.epochs=1", "trainer.log_every=1")


def test_csv_alone_has_every_epoch_once_and_every_step_in_order(tmp_path: Path) -> None:
    phases = ["phases=[baseline,sparse,prune,finetune]", "baseline.epochs=1"]
    report = run(tmp_path / "run", *SHORT[1:], *phases, "logger=csv")
    assert not list((tmp_path / "run" / "sparse").glob("events.out.tfevents.*"))
    with (tmp_path / "run" / "csv" / "part-1" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [(int(row["step"]), float(row["train/loss"])) for row in rows if row.get("train/loss")]
    trained = [report["history"][phase]["train_loss"] for phase in ("baseline", "sparse", "finetune")]
    assert [value for _, value in losses] == pytest.approx([loss for phase in trained for loss in phase])
    steps = [step for step, _ in losses]
    assert steps == sorted(set(steps)), "steps go on over phases"
    assert float(rows[-1]["final/macs"]) == report["rows"]["finetuned"]["macs"]


@pytest.mark.parametrize(("every", "points"), [(1, 4), (2, 2), (5, 0)])
def test_log_every_is_what_stands_between_two_points_of_a_step(every: int, points: int, tmp_path: Path) -> None:
    line = ("phases=[sparse]", "sparse.epochs=2", f"trainer.log_every={every}", "logger=csv")
    run(tmp_path / "run", *line)
    with (tmp_path / "run" / "csv" / "part-1" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for tag in ("train/loss_step", "sparsity/penalty"):
        assert sum(bool(row.get(tag)) for row in rows) == points


def test_mlflow_has_one_run_for_a_run_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    save, place = Saver.save, tmp_path / "run"

    def stopped(self: Saver, trainer: Any) -> None:
        save(self, trainer)
        if "finetune" in str(self.path):
            os.kill(os.getpid(), signal.SIGTERM)

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    line = (*SHORT, "logger=[tensorboard,mlflow]", f"logger.mlflow.tracking_uri={store}")
    monkeypatch.setattr(Saver, "save", stopped)
    run(place, *line, code=143)
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={place}"]) == 0
    report = json.loads((place / "report.json").read_text())
    assert list((place / "sparse").glob("events.out.tfevents.*"))
    client = mlflow.MlflowClient(tracking_uri=store)
    (experiment,) = (found for found in client.search_experiments() if found.name == "vgg_slim")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["prune/ratio"] == "0.5"
    assert found.data.metrics["final/macs"] == report["rows"]["finetuned"]["macs"]
    history = client.get_metric_history(found.info.run_id, "val/loss")
    assert len({point.step for point in history}) == 2


def test_wandb_offline(tmp_path: Path) -> None:
    """In a process of its own: wandb starts one that outlives the run."""
    pytest.importorskip("wandb")
    line = [*TINY, *SHORT, "+experiment=vgg_slim", "logger=wandb", "logger.wandb.offline=true"]
    said = tmp_path / "stderr"
    told = {**os.environ, "WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    process = start([*line, f"hydra.run.dir={quoted(tmp_path / 'run')}"], said, environment=told)
    assert ended(process, within=240) == 0, said.read_text()
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for name in (b"train/loss", b"final/macs", b"sparse"):
        assert name in content


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("logger=nosuch", "logger must be known"),
        ("+logger.own._target_=pytorch_lightning.loggers.NoSuchLogger", "must exist"),
        ("+logger.own={_target_: pytorch_lightning.loggers.CSVLogger, flush: 1}", "must be an option of CSVLogger"),
    ],
)
def test_a_logger_that_cannot_be_made_is_refused(
    bad: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", bad, code=2)
    told = capfd.readouterr().err.strip()
    assert words in told and len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_told_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slim.runs.loggers.find_spec", lambda package: None)
    run(tmp_path / "run", f"logger={name}", code=2)
    told = capfd.readouterr().err.strip()
    assert f"slim-channels[{name}]" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()
