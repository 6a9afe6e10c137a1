"""A sweep: a directory per job, one table at the end, and a failing job does not take the others along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from tests.runs.tiny import TINY


def line(*overrides: str) -> list[str]:
    given = {item.partition("=")[0] for item in overrides}
    # A list in brackets is a value, one without them a sweep.
    return ["--multirun", "+experiment=vgg_slim", *(i for i in TINY if i.partition("=")[0] not in given), *overrides]


def test_a_failing_job_does_not_take_the_others_along(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "sweep"
    epochs = ["sparse.epochs=1", "finetune.epochs=1"]
    assert train.main([*line(*epochs, "prune.ratio=0.3,1.5,0.6"), f"hydra.sweep.dir={place}"]) == 1
    reports = [json.loads((place / str(job) / "report.json").read_text()) for job in range(3)]
    assert [report["status"] for report in reports] == ["finished", "failed", "finished"]
    assert reports[0]["rows"]["finetuned"]["macs"] > reports[2]["rows"]["finetuned"]["macs"]
    assert "ratio must be in [0, 1)" in reports[1]["error"]
    out, err = capfd.readouterr()
    assert str(place) in out
    assert "Traceback" not in out + err


@pytest.mark.parametrize("bad", ["prune.ratoi=0.3,0.5", "model=vgg,resnt", "prune.ratio=1.5,2.5"])
def test_a_sweep_that_cannot_work_is_refused(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["--multirun", bad]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
