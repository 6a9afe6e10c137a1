"""A loss that is no number stops the run at its step, with advice, and the last good checkpoint stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slim.errors import RunFailed
from slim.runs.checkpoint import read
from slim.runs.failures import explained
from tests.runs.tiny import FOUR_STEPS, run


@pytest.mark.parametrize(
    ("phase", "line", "what"),
    [
        ("baseline", "phases=[baseline]", "the loss"),
        ("baseline", "phases=[baseline] trainer.checkpoint_every=1", "the weights network"),
        ("sparse", "penalty=target penalty.start=0 trainer.checkpoint_every=1", "the gradient of network"),
    ],
)
def test_not_a_number(phase: str, line: str, what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever it shows first: in the loss, in what would be saved, in what the penalty looks at."""
    run(tmp_path / "run", *line.split(), FOUR_STEPS, f"{phase}.lr=1e18", code=1)
    err = capfd.readouterr().err
    told = err.strip().splitlines()[-1]
    assert f"Got NaN or infinity in {what}" in told
    assert "batch" in told and "step" in told and "trainer.clip" in told
    assert "Traceback" not in err
    assert (tmp_path / "run" / "error.txt").read_text().strip() == told
    assert json.loads((tmp_path / "run" / "state.json").read_text())["phases"] == {}
    if "checkpoint_every" in line:
        saved = read(tmp_path / "run" / phase / "last.ckpt")
        assert all(torch.isfinite(value).all() for value in saved["state_dict"].values()), "the last good checkpoint"


def test_out_of_memory_names_a_batch_size() -> None:
    with pytest.raises(RunFailed, match=r"data.batch_size=32"), explained(64):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RunFailed, match="num_workers"), explained(64):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed.")
