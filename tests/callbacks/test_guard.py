"""A loss that is no number stops the run at its step, with advice, and the last good checkpoint stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.tiny import run


def test_not_a_number(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", "phases=[baseline]", "baseline.lr=1e18", "trainer.checkpoint_every=1", code=1)
    err = capfd.readouterr().err
    line = err.strip().splitlines()[-1]
    assert "The loss must be finite" in line
    assert "batch" in line and "step" in line and "trainer.clip" in line
    assert "Traceback" not in err
    assert (tmp_path / "run" / "error.txt").read_text().strip() == line
    assert json.loads((tmp_path / "run" / "state.json").read_text())["phases"] == {}


def test_out_of_memory_names_a_batch_size() -> None:
    import torch

    from slim.errors import RunFailed
    from slim.pipeline.failures import explained

    with pytest.raises(RunFailed, match=r"data.batch_size=32"), explained(64):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RunFailed, match="num_workers"), explained(64):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed.")
