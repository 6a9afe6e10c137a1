"""Modules and data that were not written for slim go through a whole run, and what is saved of them is read again."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset

import train
from examples.own.regression import Regression
from tests.runs.tiny import run

OWN = Path(__file__).parents[2] / "examples" / "own"
LINE = ("+experiment=own_slim", "sparse.epochs=2", "finetune.epochs=1", "data._target_=examples.own.scenes.Scenes",
        "+data.limit=200", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.threads=1",
        "latency_seconds=0.001", "figures=false", "recovery.recalibrate_batches=2", "+module.width=8")  # fmt: skip
REGRESSION = (*LINE, "module._target_=examples.own.regression.Regression", "metric.name=mae", "network=net")
DETECTOR = (*LINE, "module._target_=examples.own.detector.GridDetector", "metric.name=f1", "metric.mode=max",
            "metric.percent=true", "network=''", "+data.digits=3")  # fmt: skip


def test_they_know_nothing_of_slim() -> None:
    for file in OWN.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "slim" for name in names), file


@pytest.mark.parametrize("line", [REGRESSION, DETECTOR], ids=["regression", "detector"])
def test_a_whole_run(line: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path / "run", *line)
    rows, metric = report["rows"], report["metric"]["name"]
    assert rows["finetuned"]["macs"] <= 0.5 * rows["sparse"]["macs"]
    assert rows["masked"]["metric"] == pytest.approx(rows["rebuilt"]["metric"], abs=1e-4)
    assert metric in (tmp_path / "run" / "report.md").read_text()
    assert len(report["history"]["sparse"][f"val_{metric}"]) == 2
    capfd.readouterr()
    assert train.main(["task=evaluate", f"checkpoint={tmp_path / 'run'}"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found[metric] == pytest.approx(rows["finetuned"]["metric"])
    assert found["data"] == report["data"] == "Scenes", "Lightning's own name of a data module is None"


class AnotherTest(Regression):
    """Logs in its test step what networks are not compared by."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/images", float(len(batch[0])))


def test_a_test_step_that_lacks_the_metric_gives_way_to_the_validation_step(tmp_path: Path) -> None:
    """Found out at the end it would cost a whole training."""
    line = [item for item in REGRESSION if not item.startswith("module._target_")]
    found = [
        run(tmp_path / name, *line, f"module._target_={place}.{name}", "phases=[sparse]", "sparse.epochs=1")
        for place, name in (("examples.own.regression", "Regression"), ("tests.examples.test_own", "AnotherTest"))
    ]
    assert found[0]["rows"]["sparse"]["metric"] == found[1]["rows"]["sparse"]["metric"] > 0


class Late(Regression):
    """Makes its network in ``configure_model``, each time anew."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.net = width, None  # type: ignore[assignment]

    def configure_model(self) -> None:
        self.net = Regression(width=self.width).net


def test_a_module_may_make_its_network_in_configure_model(tmp_path: Path) -> None:
    report = run(tmp_path, *REGRESSION, f"module._target_={__name__}.Late", "sparse.epochs=1")
    rows = report["rows"]
    assert rows["finetuned"]["macs"] <= 0.5 * rows["sparse"]["macs"]
    assert rows["masked"]["metric"] == pytest.approx(rows["rebuilt"]["metric"], abs=1e-4)


class Aside(Regression):
    """A head of its own reads what the first block of the network makes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width=width)
        self.head = nn.Conv2d(width, 1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.head(self.net[0](batch[0]))
        return super().training_step(batch, batch_idx)


def test_a_reader_outside_of_the_network_is_refused_before_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = [*REGRESSION, f"module._target_={__name__}.Aside", f"output={tmp_path / 'run'}"]
    assert train.main(line) == 2
    assert "calls '0.0' of the network by themselves" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_no_number_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of images without anything to find: it is unknown, and what is known of other epochs counts.

    Whatever word the module has for validation.
    """

    def error(module: Regression, name: str, batch: object) -> None:
        known = name == "val/mae" and module.current_epoch == 1
        module.log(name.replace("val/", "valid_"), 2.0 if known else float("nan"), batch_size=1)

    monkeypatch.setattr(Regression, "_error", error)
    report = run(tmp_path / "run", *REGRESSION)
    phases = report["phases"]
    assert report["history"]["sparse"]["valid_mae"] == [None, 2.0] and phases["sparse"]["val"] == 2.0
    assert (phases["sparse"]["best_val"], phases["sparse"]["best_epoch"]) == (2.0, 2)
    assert phases["finetune"]["val"] is None and "best_epoch" not in phases["finetune"]
    assert report["rows"]["finetuned"]["metric"] is None


def test_killed_and_resumed_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loader shuffles by the global generators, and its own scheduler goes on where it was."""
    from slim.runs.checkpoint import Saver
    from slim.runs.signals import Interrupted

    run(tmp_path / "whole", *REGRESSION)
    save, saves = Saver.save, iter(range(1, 100))

    def stopping(self: Saver, trainer: object) -> None:
        save(self, trainer)  # type: ignore[arg-type]
        if next(saves) == 3:
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(Saver, "save", stopping)
    run(tmp_path / "stopped", *REGRESSION, "trainer.checkpoint_every=3", code=143)
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={tmp_path / 'stopped'}"]) == 0
    from safetensors.torch import load_file

    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


class Averaged(Regression):
    """Is evaluated by an average of its network, which it keeps."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width=width)
        self.average = AveragedModel(self.net)

    def on_train_batch_end(self, *_: Any) -> None:
        self.average.update_parameters(self.net)

    def _error(self, name: str, batch: Any) -> None:
        self.log(name, (self.average(batch[0]) - batch[1][:, 0]).abs().mean(), batch_size=len(batch[0]))


def test_an_average_is_cut_with_its_network_also_when_a_fine_tune_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from slim.runs.checkpoint import Saver
    from slim.runs.signals import Interrupted

    line = [*REGRESSION, f"module._target_={__name__}.Averaged", "sparse.epochs=1", "trainer.checkpoint_every=3"]
    report = run(tmp_path / "whole", *line)
    assert report["rows"]["masked"]["metric"] == pytest.approx(report["rows"]["rebuilt"]["metric"], abs=1e-4)
    save = Saver.save

    def stopping(self: Saver, trainer: Any) -> None:
        save(self, trainer)
        if trainer.lightning_module.net[0][0].out_channels < 8 or trainer.lightning_module.net[1][0].out_channels < 16:
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(Saver, "save", stopping)
    run(tmp_path / "stopped", *line, code=143)
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={tmp_path / 'stopped'}"]) == 0
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert {"net.0.0.weight", "average.module.0.0.weight"} <= set(
        load_file(tmp_path / "whole/finetune/network.safetensors")
    )


def test_a_metric_that_is_not_logged_costs_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = [item for item in REGRESSION if not item.startswith("metric.name")]
    run(tmp_path / "run", *line, "metric.name=rmse", code=2)
    error = capfd.readouterr().err
    assert "metric.name=rmse; it logs val/mae" in error
    assert not (tmp_path / "run").exists()


def test_data_without_test_images_are_refused_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from examples.own.scenes import Scenes

    monkeypatch.delattr(Scenes, "test_dataloader")
    run(tmp_path / "run", *REGRESSION, code=2)
    assert "Got data._target_=examples.own.scenes.Scenes without one" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_data_for_a_model_of_slim_need_not_say_how_large_their_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples.own.scenes import Scenes

    def labelled(data: Scenes, stage: str | None = None) -> None:
        data.splits = [TensorDataset(torch.rand(64, 1, 8, 8), torch.arange(64) % 10) for _ in range(3)]

    monkeypatch.setattr(Scenes, "setup", labelled)
    for name, value in (("num_classes", 10), ("in_channels", 1)):
        monkeypatch.setattr(Scenes, name, value, raising=False)
    line = ["+experiment=own_slim", "data._target_=examples.own.scenes.Scenes", "module=classification", "model=vgg",
            "model.widths=[8,M,16]", "phases=[baseline]", "baseline.epochs=1", "trainer.threads=1"]  # fmt: skip
    assert run(tmp_path / "run", *line)["rows"]["dense"]["macs"] > 0
