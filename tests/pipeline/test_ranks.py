"""Two gloo processes: surgery in the middle, one plan, equal gammas on both, and no hang when one dies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import slim
from slim.channels import plan_of
from slim.models import vgg
from slim.pipeline import ranks
from tests.pipeline.tiny import run

LINE = ("trainer.devices=2", "penalty=target", "sparse.epochs=2", "sparse.slim_every=1", "finetune.epochs=1")


def test_two_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path / "run", *LINE)
    assert report["phases"]["sparse"]["steps"] == 4  # 4 batches of 32 an epoch, shared by two
    assert report["phases"]["sparse"]["slimmed"], "surgery happened under DDP"
    network = slim.load(tmp_path / "run" / "model.safetensors", vgg(widths=[8, "M", 16], num_classes=10, in_channels=1))
    assert plan_of(network) is not None
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    assert "rank 1" not in capfd.readouterr().err
    # The environment of the next test is that of a single process again.
    assert ranks.rank() == 0
    assert not torch.distributed.is_initialized()


def test_a_dead_rank_takes_the_run_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process exits at once, as if it had been killed; this one ends with a line instead of waiting."""
    ended: list[int] = []

    class Gone(Exception):
        pass

    def leave(code: int) -> None:
        ended.append(code)
        raise Gone

    monkeypatch.setattr(ranks.os, "_exit", leave)
    import subprocess
    import sys
    import threading

    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(9)"])
    process.wait()
    with pytest.raises(Gone):
        ranks._watch([process], threading.Event())
    assert ended == [1]
