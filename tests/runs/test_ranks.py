"""Two gloo processes: surgery in the middle, one plan, equal gammas on both, and no hang when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from slim.callbacks.slimming import agreed
from slim.pipeline import ranks

import slim
import train
from experiments.chaos.harness import Outcome, compare, start
from slim.channels import plan_of
from slim.errors import RunFailed
from slim.runs.checkpoint import Saver, read
from slim.runs.signals import Signals
from slim.runs.state import State
from tests.runs.networks import watched
from tests.runs.tiny import TINY, run

# Surgery after the first of three epochs; a checkpoint after every second step.
LINE = (
    "model=custom", "model._target_=tests.runs.networks.watched", "trainer.devices=2", "trainer.checkpoint_every=2",
    "penalty=target", "sparse.epochs=3", "sparse.slim_every=1", "finetune.epochs=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def gammas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes of the test write their gammas."""
    place = tmp_path / "gammas"
    place.mkdir()
    monkeypatch.setenv("GAMMAS", str(place))
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], list[list[str]]]]:
    """An undisturbed run of two processes: its directory, its report, and each process's gammas at every step."""
    home = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAMMAS", str(home))
        report = run(home / "run", *LINE)
    yield home / "run", report, [(home / str(rank)).read_text().splitlines() for rank in range(2)]


def test_gammas_agree_bit_for_bit(whole: tuple[Path, dict[str, Any], list[list[str]]]) -> None:
    """At every step of sparse training and fine-tuning, before and after surgery; and on what the run ends with."""
    place, report, (first, second) = whole
    assert report["phases"]["sparse"]["slimmed"], "surgery happened under DDP"
    assert report["phases"]["sparse"]["steps"] == 6  # 4 batches of 32 an epoch, shared by two
    assert len(first) == 6 + report["phases"]["finetune"]["steps"]
    assert first == second
    widths = [tuple(len(gamma) for gamma in line.split()) for line in first]
    assert widths[0] != widths[5], "thinner after surgery"
    assert len(set(first[:6])) == 6, "gammas move"
    network = slim.load(place / "model.safetensors", watched(10, 1))
    assert plan_of(network) is not None
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    # The environment of the next test is that of a single process again.
    assert ranks.rank() == 0 and "LEADER" not in os.environ
    assert not torch.distributed.is_initialized()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_ranks(whole: tuple[Path, dict[str, Any], list[list[str]]], tmp_path: Path) -> None:
    """First the other rank is killed, then rank 0 of the resumed run; what is resumed after that ends the same."""
    place, told = tmp_path / "run", tmp_path / "stderr"
    process = start([*_line(), f"hydra.run.dir={place}"], told)
    _until(lambda: (place / "sparse" / "last.ckpt").is_file(), process)
    (other,) = _children(process)
    os.kill(other, signal.SIGKILL)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    assert time.monotonic() - began < 20
    said = [text for text in told.read_text().splitlines() if "must live" in text]
    assert said == [(place / "error.txt").read_text().strip()]
    assert "the end of rank 1 (SIGKILL)" in said[0] and "resume=" in said[0]
    assert "Traceback" not in told.read_text()
    assert not State.load(place).phases

    written = (place / "sparse" / "last.ckpt").stat().st_mtime_ns
    process = start([f"resume={place}"], told)
    _until(lambda: (place / "sparse" / "last.ckpt").stat().st_mtime_ns > written, process)
    (other,) = _children(process)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    _until(lambda: not _lives(other), None, 20)

    assert train.main([f"resume={place}"]) == 0
    outcome = Outcome()
    compare(whole[0], place, outcome)
    assert outcome.differences == []


def test_a_rank_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What went wrong on another rank is the one message of the run."""
    monkeypatch.setenv("NAN_RANK", "1")
    monkeypatch.setenv("NAN_STEP", "1")
    run(tmp_path / "run", *LINE, "phases=[sparse]", code=1)
    err = capfd.readouterr().err
    assert err.count("must be finite") == 1 and "the loss" in err and "must live" not in err
    assert "rank 1: Numbers in training must be finite" in err.strip().splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(("code", "says"), [("sys.exit(9)", "code 9"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_hanging_leader_is_ended(
    code: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the connection does not break by itself, the watch ends the process with a line."""

    class Ended(Exception):
        pass

    def leave(status: int) -> None:
        assert status == 1
        raise Ended

    monkeypatch.setattr(ranks.os, "_exit", leave)
    monkeypatch.setattr(ranks, "PATIENCE", 0.1)
    monkeypatch.setenv("LEADER", str(os.getppid()))
    process = subprocess.Popen([sys.executable, "-c", f"import os, sys; {code}"], text=True)
    process.wait()
    over = threading.Event()
    threading.Timer(20, over.set).start()
    with pytest.raises(Ended):
        ranks._watch({1: process}, {}, over)
    over.set()
    assert f"the end of rank 1 ({says})" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    """They save and leave together, with the signal's exit code, whichever of them was told."""
    place, told = tmp_path / "run", tmp_path / "stderr"
    process = start([*_line("sparse.epochs=400", "sparse.slim_every=0"), f"hydra.run.dir={place}"], told)
    _until(lambda: (place / "sparse" / "last.ckpt").is_file(), process)
    os.kill(_children(process)[0], signal.SIGUSR1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 138
    assert told.read_text().splitlines()[-1].endswith(f"resume={place}")
    assert read(place / "sparse" / "last.ckpt")["global_step"] >= 2


def test_ranks_save_together() -> None:
    """Clocks differ: where one rank finds that it is time to save, all do; and the strongest signal counts."""
    others = torch.tensor([1, 2])
    trainer: Any = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(
            root_device=torch.device("cpu"), reduce=lambda mine, reduce_op: torch.maximum(mine, others)
        ),
    )
    saver = Saver(Path("last.ckpt"), beside=dict, signals=Signals())
    assert saver._agreed(trainer, False) == (True, "SIGTERM")
    others.zero_()
    assert saver._agreed(trainer, False) == (False, None)
    assert saver._agreed(trainer, True) == (True, None)


@pytest.mark.parametrize("same", [True, False])
def test_every_rank_checks_the_plan(same: bool) -> None:
    """Rank 0's removal is everybody's, and refused by a rank whose network makes another plan of it."""
    graph = slim.trace(watched(10, 1), torch.zeros(1, 1, 8, 8))
    told = np.zeros(len(graph), dtype=bool)
    told[[1, 9]] = True
    mine = np.zeros(len(graph), dtype=bool)
    sent = (told.tolist(), graph.plan(told).hash if same else graph.plan(mine).hash)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda _: sent), global_rank=1)
    if same:
        assert (agreed(trainer, graph, mine) == told).all()
        return
    with pytest.raises(RunFailed, match=r"same plan. Got .* on rank 1"):
        agreed(trainer, graph, mine)
    other = slim.trace(slim.rebuild(graph.model, graph.plan(told)), torch.zeros(1, 1, 8, 8))
    with pytest.raises(RunFailed, match="another numb"):
        agreed(trainer, other, np.zeros(len(other), dtype=bool))


def _line(*overrides: str) -> list[str]:
    keys = {_key(item) for item in (*overrides, "model.widths")}
    mine = [*(item for item in LINE if _key(item) not in keys), *overrides]
    keys |= {_key(item) for item in mine}
    return ["+experiment=vgg_slim", *(item for item in TINY if _key(item) not in keys), *mine]


def _key(item: str) -> str:
    return item.partition("=")[0]


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(holds: Callable[[], bool], process: int | None, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or os.waitpid(process, os.WNOHANG)[0] == 0, "the run ended early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
