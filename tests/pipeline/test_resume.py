"""Whatever happens to the process, a resumed run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

import train
from experiments.chaos.harness import Outcome, chaos, compare, curves, start
from slim.callbacks.checkpoint import Saver
from slim.callbacks.signals import Interrupted
from slim.errors import SlimError
from slim.pipeline.record import timeless
from slim.pipeline.state import Lock, State, differences
from tests.pipeline.tiny import TINY, run

SLIMMING = ("penalty=target", "sparse.epochs=4", "sparse.slim_every=1", "trainer.checkpoint_every=2")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_three_kills(tmp_path: Path) -> None:
    """SIGKILL at random moments, surgery in the middle of training included; every bit is compared."""
    outcome = chaos(tmp_path, 3, overrides=("+experiment=vgg_slim", *_tiny(*SLIMMING)), longest=3.0)
    assert len(outcome.kills) == 3
    assert outcome.differences == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_signals_leave_a_checkpoint(tmp_path: Path, number: int, code: int) -> None:
    line = ["+experiment=vgg_slim", *_tiny("sparse.epochs=400", "data.limit_train=64")]
    process = start([*line, f"hydra.run.dir={tmp_path / 'run'}"])
    _until(lambda: (tmp_path / "run" / "sparse" / "last.ckpt").is_file(), process)
    os.kill(process, number)
    began = time.monotonic()
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == code
    assert time.monotonic() - began < 20
    assert not (tmp_path / "run" / "lock").exists()
    assert State.load(tmp_path / "run").phases == {}


def test_extended_runs_and_changed_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    run(place, "phases=[baseline]")
    capfd.readouterr()
    assert train.main([f"resume={place}", "seed=5", "optimizer.lr=0.3"]) == 2
    line = capfd.readouterr().err
    assert "seed (0 -> 5)" in line
    assert "optimizer.lr" in line
    assert len(line.strip().splitlines()) == 1


def test_resumed_without_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose fine-tuning failed once goes on there; what was done is not done again."""
    from slim.errors import RunFailed
    from slim.pipeline import run as runs

    run(tmp_path / "whole")
    once = runs.train

    def fails(*args: object, **kwargs: object) -> object:
        if args[2] == "finetune":
            raise RunFailed("The disk must have room. Got none. Free some.")
        return once(*args, **kwargs)

    monkeypatch.setattr(runs, "train", fails)
    run(tmp_path / "killed", code=1)
    monkeypatch.setattr(runs, "train", once)
    before = (tmp_path / "killed" / "sparse" / "network.safetensors").stat().st_mtime_ns
    assert train.main([f"resume={tmp_path / 'killed'}"]) == 0
    assert (tmp_path / "killed" / "sparse" / "network.safetensors").stat().st_mtime_ns == before
    outcome = Outcome()
    compare(tmp_path / "whole", tmp_path / "killed", outcome)
    assert outcome.differences == []


def test_two_runs_never_share_a_directory(tmp_path: Path) -> None:
    with Lock(tmp_path), pytest.raises(SlimError, match=f"held by process {os.getpid()}"), Lock(tmp_path):
        pass
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")  # a process that is gone holds no lock
    with Lock(tmp_path):
        pass
    assert not (tmp_path / "lock").exists()


def test_differences_name_keys() -> None:
    before = {"seed": 0, "sparse": {"epochs": 3, "lr": 0.1}, "debug": False}
    after = {"seed": 0, "sparse": {"epochs": 9, "lr": 0.2}, "debug": True}
    assert differences(before, after) == ["sparse.lr (0.1 -> 0.2)"]


def _tiny(*overrides: str) -> list[str]:
    given = {item.partition("=")[0] for item in overrides}
    return [*(item for item in TINY if item.partition("=")[0] not in given), *overrides]


def _until(holds: object, process: int, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert os.waitpid(process, os.WNOHANG)[0] == 0, "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8, 10])
def test_every_kind_of_save_is_exact(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a save within an epoch, at its end, and right after surgery (four steps to an epoch)."""
    line = (*SLIMMING, "phases=[sparse]", "trainer.checkpoint_every=1", "trainer.channels_last=true")
    run(tmp_path / "whole", *line)
    save, saves = Saver.save, iter(range(1, 1000))

    def stopping(self: Saver, trainer: object) -> None:
        save(self, trainer)  # type: ignore[arg-type]
        if next(saves) == stop:
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(Saver, "save", stopping)
    run(tmp_path / "stopped", *line, code=143)
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={tmp_path / 'stopped'}"]) == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "stopped")]
    assert timeless(reports[0]) == timeless(reports[1])
    assert curves(tmp_path / "whole" / "sparse") == curves(tmp_path / "stopped" / "sparse")
