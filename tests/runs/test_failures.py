"""What goes wrong while a run is under way ends in one line that names it, and what was done is kept."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from experiments.chaos.harness import exit_code, start
from slim.errors import RunFailed
from slim.runs.checkpoint import Saver
from slim.runs.failures import explained
from slim.runs.record import timeless
from slim.runs.signals import Signals
from slim.runs.state import State
from tests.runs.tiny import TINY, run


def line_of(err: str) -> str:
    """The last line of what a user reads; there is no traceback above it."""
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


# Memory


@pytest.mark.parametrize(
    ("when", "says"),
    [("training", "Set data.batch_size=16 and trainer.accumulate=2"), ("judging", "Set data.eval_batch_size=128")],
)
def test_out_of_memory(
    when: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the allocator says is turned into a batch size, while training and while measuring after the cut."""
    monkeypatch.setenv("HUNGRY", when)
    custom = ("model=custom", "model._target_=tests.runs.networks.hungry", "data.val_fraction=0")
    run(tmp_path / "run", *custom, code=1)
    assert says in line_of(capfd.readouterr().err)
    assert (tmp_path / "run" / "error.txt").is_file()


def test_out_of_memory_in_numpy() -> None:
    with pytest.raises(RunFailed, match=r"Got data.batch_size=64 \(out of memory\)"), explained(64):
        np.empty(10**16)


def test_an_operation_that_cannot_repeat_itself() -> None:
    torch.use_deterministic_algorithms(True)  # as a run does
    x, places = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.long)
    with pytest.raises(RunFailed, match=r"Got max_unpool.* Set trainer.deterministic=false"), explained(64):
        torch.nn.functional.max_unpool2d(x, places, 2)


# Data that goes bad while it is streamed


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chance = np.random.default_rng(0)
    for place in (f"{part}/{label}" for part in ("train", "test") for label in ("cat", "dog")):
        (tmp_path / "pictures" / place).mkdir(parents=True)
        for index in range(40):
            pixels = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / place / f"{index:03}.png")
    return tmp_path / "pictures"


def corrupt(pictures: Path) -> None:
    for path in pictures.rglob("0*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")


def kill_a_worker(pictures: Path) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("workers", "happens", "says"),
    [(0, corrupt, ".png"), (0, shutil.rmtree, "No such file"), (2, corrupt, ".png"), (2, kill_a_worker, "num_workers")],
)
def test_data_that_goes_bad(
    workers: int,
    happens: Callable[[Path], None],
    says: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After the second step; the checkpoint of that step stays, and the place of the data is named.

    A worker's death may reach the process between two batches, where no folder is known.
    """
    save = Saver.save

    def saving(self: Saver, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == 2:
            happens(pictures)

    monkeypatch.setattr(Saver, "save", saving)
    data = ("data=image_folder", f"data.dir={pictures}", "data.memory_budget_gb=1e-9", f"data.num_workers={workers}")
    small = ("data.limit_train=null", "data.limit_test=null", "data.batch_size=8", "trainer.checkpoint_every=1")
    run(tmp_path / "run", *data, *small, code=1)
    told = line_of(capfd.readouterr().err)
    assert says in told
    assert str(pictures) in told or happens is kill_a_worker
    assert (tmp_path / "run" / "sparse" / "last.ckpt").is_file()


def test_a_worker_that_dies_while_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch raises in a signal handler: whatever line of ours is under way."""
    from slim.runs import phases

    def fails(*_: Any, **__: Any) -> None:
        raise RunFailed("The disk must have room. Got none. Free some.")

    def dies(path: Path, text: str) -> None:
        assert path.name == "error.txt" and "room" in text
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(phases, "train", fails)
    monkeypatch.setattr(phases, "write_atomic", dies)
    run(tmp_path / "run", code=1)
    assert "num_workers" in line_of(capfd.readouterr().err)
    assert not (tmp_path / "run" / "lock").exists()


def test_a_signal_that_somebody_catches_counts_after_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As parts of PyTorch's exporter do."""
    from slim.runs import phases

    cut = phases.cut_network

    def catches(*arguments: Any) -> Any:
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        return cut(*arguments)

    monkeypatch.setattr(phases, "cut_network", catches)
    run(tmp_path / "run", "sparse.epochs=1", "phases=[sparse,prune]", code=143)
    assert "nothing is lost" in line_of(capfd.readouterr().err)
    assert list(State.load(tmp_path / "run").phases) == ["sparse", "prune"]


def test_what_fails_after_a_signal_is_the_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C reaches the workers of the same terminal, and a spawned one ends before the step does."""
    from slim.runs import phases

    def dies(parts: Any, directory: Path, name: str, before: Any, signals: Signals, *_: Any, **__: Any) -> None:
        signals.waiting = True
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    monkeypatch.setattr(phases, "train", dies)
    run(tmp_path / "run", code=130)
    assert "nothing is lost" in line_of(capfd.readouterr().err)


# A cut too deep


def test_chance_after_the_cut_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With its accuracy before and after every step of the cut, in the terminal and in the report."""
    line = ("sparse.epochs=12", "sparse.lr=0.2", "data.limit_train=400", "data.val_fraction=0.3", "recovery=none")
    report = run(tmp_path / "run", *line, "criterion=random", "prune.ratio=0.8", "phases=[sparse,prune]")
    told = [note for note in report["notes"] if "chance" in note]
    assert len(told) == 1
    assert told[0] in capfd.readouterr().err
    shown = json.loads((tmp_path / "run" / "state.json").read_text())["phases"]["prune"]["validation"]
    assert list(shown) == ["sparse", "masked", "rebuilt", "recovered"]
    for name, accuracy in shown.items():
        assert f"{name} {100 * accuracy:.2f} %" in told[0]
    assert shown["sparse"] > 0.3 > 0.15 > shown["recovered"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert told[0] in text
    assert all(name in text for name in ("sparse", "masked", "rebuilt", "recovered"))


# A full disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a run that has room."""
    return run(tmp_path_factory.mktemp("room") / "run")


def with_full_disk(argv: list[str], name: str) -> int:
    """A run; from the moment that ``name`` is written no file can grow."""
    opened = Path.open

    def full(path: Path, *args: Any, **options: Any) -> Any:
        if path.name.startswith(f".{name}."):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return opened(path, *args, **options)

    Path.open = full  # type: ignore[method-assign, assignment]
    return train.main(argv)


@pytest.mark.parametrize(
    "name",
    ["state.json", "last.ckpt", "network.safetensors", "plan.json", "model.safetensors", "report.json", "report.md"],
)
def test_a_full_disk(name: str, whole: dict[str, Any], tmp_path: Path) -> None:
    """One line that names the file; with room again the run goes on."""
    place, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)  # a limit on files leaves pipes alone
    line = ["+experiment=vgg_slim", *TINY, f"hydra.run.dir={place}"]
    process = start(line, pipe, main=partial(with_full_disk, name=name))
    last = line_of(pipe.read_text())
    assert exit_code(process) == 1
    assert f"The disk must have room for {name}" in last
    assert not list(place.rglob(".*.part"))
    begun = (place / "state.json").is_file()
    assert train.main([f"resume={place}"] if begun else line) == 0
    assert timeless(json.loads((place / "report.json").read_text())) == timeless(whole)


def test_a_disk_that_is_full_for_tensorboard_is_one_line() -> None:
    with pytest.raises(RunFailed, match=r"The disk must have room .* No space left .* resume="), explained(64):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), explained(64):
        raise PermissionError(errno.EACCES, "Permission denied")
