"""Whatever happens to the process, a resumed run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer

import train
from experiments.chaos.harness import Outcome, compare, curves, exit_code, start
from slim.channels import check
from slim.errors import SlimError
from slim.runs import pruning
from slim.runs.checkpoint import Saver, read
from slim.runs.record import timeless
from slim.runs.signals import Interrupted
from slim.runs.state import Lock, State, _let_go, differences
from tests.runs.tiny import FOUR_STEPS, TINY, run
from tests.waiting import until

SLIMMING = (FOUR_STEPS, "penalty=target", "sparse.epochs=4", "sparse.slim_every=1", "trainer.checkpoint_every=2")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_signals_leave_a_checkpoint(tmp_path: Path, number: int, code: int) -> None:
    """And the command that goes on, in one line; the step that is under way is in the checkpoint."""
    place, told = tmp_path / "my run", tmp_path / "told"
    line = ["+experiment=vgg_slim", *_tiny("sparse.epochs=400")]
    process = start([*line, f"hydra.run.dir='{place}'"], told)
    until((place / "sparse" / "last.ckpt").is_file, process.is_alive)
    before = read(place / "sparse" / "last.ckpt")["global_step"]
    assert process.pid is not None
    os.kill(process.pid, number)
    assert exit_code(process) == code, "it ends before its 400 epochs are done, and long before the test's own limit"
    assert told.read_text().splitlines()[-1].endswith(f"Go on with: python train.py 'resume={place}'")
    assert "Traceback" not in told.read_text()
    assert not (place / "lock").exists() and not (place / "error.txt").exists()
    assert State.load(place).phases == {}
    assert read(place / "sparse" / "last.ckpt")["global_step"] >= before


def test_a_signal_during_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not forgotten when no step follows that would look at it."""
    save, place = Saver.save, tmp_path / "run"

    def late(self: Saver, trainer: Trainer) -> None:
        save(self, trainer)
        if trainer.current_epoch + 1 == trainer.max_epochs:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Saver, "save", late)
    run(place, "phases=[baseline]", code=143)
    assert State.load(place).phases == {}
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={place}"]) == 0
    assert len(json.loads((place / "report.json").read_text())["history"]["baseline"]["train_loss"]) == 2


def test_a_module_that_steps_by_itself_says_how_often(tmp_path: Path) -> None:
    """Its law has all channels at zero in time; and a run of before there was such a key goes on."""
    line = [FOUR_STEPS, "penalty=target", "sparse.epochs=4", "module._target_=tests.runs.networks.BySelf"]
    with pytest.warns(UserWarning, match=r"Set steps=8 \(SparseTraining, sparse\.steps\)"):
        run(tmp_path / "late", *line, "phases=[sparse]")
    report = run(tmp_path / "run", *line, "phases=[sparse,prune]", "sparse.steps=8")
    assert report["phases"]["sparse"]["steps"] == 8 and report["cut"] == 0.0
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    after = json.loads(json.dumps(state["config"])) | {"sparse": {**state["config"]["sparse"], "steps": None}}
    del state["config"]["sparse"]["steps"]
    assert not differences(state["config"], after)


def test_a_phase_that_stopped_early_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run was stopped right then; and the report says that the law was not done."""
    line = ("phases=[sparse]", "penalty=target", "sparse.epochs=9", "module._target_=tests.runs.networks.Impatient")
    whole, save = run(tmp_path / "whole", *line), Saver.save

    def late(self: Saver, trainer: Trainer) -> None:
        save(self, trainer)
        if trainer.should_stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Saver, "save", late)
    run(tmp_path / "run", *line, code=143)
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={tmp_path / 'run'}"]) == 0
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert timeless(again) == timeless(whole) and whole["phases"]["sparse"]["epochs"] == 2
    assert any("ended after 4 of the 18 steps of its law" in note for note in whole["notes"])


@pytest.mark.parametrize(("place", "name"), [(pruning, "evaluate"), (check, "forward_on_meta")])
def test_a_signal_between_training_phases(
    place: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no step is waited for it counts at once, also where what fails is a finding; what was done stays."""
    whole = getattr(place, name)

    def told(*args: object) -> object:
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # the cut is rehearsed before the run begins
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(place, name, told)
    run(tmp_path / "run", "phases=[sparse,prune]", code=143)
    assert "resume=" in capfd.readouterr().err.splitlines()[-1]
    assert list(State.load(tmp_path / "run").phases) == ["sparse"]
    monkeypatch.setattr(place, name, whole)
    assert train.main([f"resume={tmp_path / 'run'}"]) == 0
    assert "sparse: done before" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are given back"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_run_is_nobodys(tmp_path: Path) -> None:
    """Data workers outlive a killed run for a moment; they do not hold its directory."""
    place = tmp_path / "run"
    place.mkdir()
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with Lock(place):
            if os.fork() == 0:
                os.write(writer, str(os.getpid()).encode())
            time.sleep(20)
            os._exit(0)
    worker = int(os.read(reader, 20))
    with pytest.raises(SlimError, match=f"held by process {process}"), Lock(place):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with Lock(place):
        pass
    os.kill(worker, signal.SIGKILL)


def test_a_lock_that_a_signal_interrupts_closes_no_file_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a data worker that died, torch tells in a signal handler; later workers are forked from the same process."""
    close = os.close

    def interrupted(handle: int) -> None:
        close(handle)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError), Lock(tmp_path):
        patch.setattr(os, "close", interrupted)
    with open(tmp_path / "another", "wb") as file:  # has the number that the lock had
        _let_go()
        os.fstat(file.fileno())


def test_epochs_may_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a phase that was stopped: it goes on to the new end, however often it is stopped on the way."""
    save, place = Saver.save, tmp_path / "run"

    def stopping(self: Saver, trainer: object) -> None:
        save(self, trainer)  # type: ignore[arg-type]
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(Saver, "save", stopping)
    run(place, FOUR_STEPS, "phases=[baseline]", code=143)
    assert train.main([f"resume={place}", "baseline.epochs=3", "trainer.log_every=1"]) == 143
    assert State.load(place).overrides[-1] == "trainer.log_every=1"
    assert train.main([f"resume={place}", "baseline.epochs=1"]) == 2, "it is in its second"
    monkeypatch.setattr(Saver, "save", save)
    assert train.main([f"resume={place}"]) == 0
    report = json.loads((place / "report.json").read_text())
    assert report["phases"]["baseline"]["epochs"] == 3
    assert "baseline.epochs=3" in report["command"]
    assert len(report["history"]["baseline"]["train_loss"]) == 3
    assert [step for step, _ in curves(place / "baseline")["2_loss/train"]] == [3, 7, 11], "one curve, without a gap"


def test_changed_runs_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    run(place, "phases=[baseline]")
    before = (place / "state.json").read_bytes()
    kept = {path: path.read_bytes() for path in (place / ".hydra").iterdir()}
    capfd.readouterr()
    assert train.main([f"resume={place}", "seed=5", "optimizer.lr=0.3"]) == 2
    line = capfd.readouterr().err
    assert "seed (0 -> 5)" in line
    assert "optimizer.lr" in line
    assert len(line.strip().splitlines()) == 1
    assert train.main([f"resume={place}", "baseline.epochs=5"]) == 2
    line = capfd.readouterr().err
    assert "Got baseline.epochs=5, and baseline is done with 2." in line and line.count("\n") == 1
    run(place, "phases=[baseline]", "seed=5", code=2)
    assert "seed (0 -> 5)" in capfd.readouterr().err
    assert kept and {path: path.read_bytes() for path in (place / ".hydra").iterdir()} == kept
    assert train.main([f"resume={place}", "sparse.epochs=5"]) == 0, "of a phase that is not part of the run"
    assert json.loads(before)["phases"] == State.load(place).phases


def test_resumed_without_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose fine-tuning failed once goes on there; what was done is not done again."""
    from slim.errors import RunFailed
    from slim.runs import phases as runs

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
    before = {"seed": 0, "sparse": {"epochs": 3, "lr": 0.1}, "debug": False, "logger": {"tensorboard": {}}}
    after = {"seed": 0, "sparse": {"epochs": 9, "lr": 0.2}, "debug": True, "logger": {"csv": {"flush": 1}}}
    assert differences(before, after) == ["sparse.lr (0.1 -> 0.2)"]


def _tiny(*overrides: str) -> list[str]:
    given = {item.partition("=")[0] for item in overrides}
    return [*(item for item in TINY if item.partition("=")[0] not in given), *overrides]


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 8, 10])
def test_every_kind_of_save_is_exact(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a save within an epoch, at its end, and right after surgery (four steps to an epoch)."""
    line = (*SLIMMING, "phases=[sparse]", "trainer.checkpoint_every=1", "trainer.channels_last=true")
    _stopped_after_a_save(tmp_path, monkeypatch, stop, "sparse", line)


@pytest.mark.parametrize(
    ("option", "stop"),
    [("max_steps: 6", 6), ("max_steps: 8", 4), ("check_val_every_n_epoch: null, val_check_interval: 3", 3)],
)
def test_no_save_comes_before_what_the_step_is_followed_by(
    option: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation, or the end of an epoch within which the steps end: what goes on from there would miss it."""
    line = (FOUR_STEPS, "phases=[baseline]", "trainer.checkpoint_every=1", f"trainer.options={{{option}}}")
    _stopped_after_a_save(tmp_path, monkeypatch, stop, "baseline", line)


def test_a_scheduler_that_follows_a_metric_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning steps it after the checkpoint, and not when it goes on from there: every fall was missed."""
    plateau = ("scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "scheduler.factor=0.5")
    never_better = ("+scheduler.patience=0", "+scheduler.threshold=0.9", "~scheduler.total_iters")
    follows = ("scheduler=constant", "+scheduler.interval=epoch", "+scheduler.monitor=val/loss")
    line = (*follows, *plateau, *never_better, "phases=[baseline]", "baseline.epochs=4")
    _stopped_after_a_save(tmp_path, monkeypatch, 2, "baseline", line)
    rates = [point[-1] for point in curves(tmp_path / "whole" / "baseline")["5_schedule/lr"]]
    assert len(set(rates)) > 2, "it falls"


def _stopped_after_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, phase: str, line: tuple[str, ...]
) -> None:
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
    assert curves(tmp_path / "whole" / phase) == curves(tmp_path / "stopped" / phase)
