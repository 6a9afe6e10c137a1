"""A compiled network is the same network, also after it was rebuilt in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.runs.tiny import run

SLIMMING = (
    *("penalty=target", "sparse.epochs=2", "sparse.slim_every=1", "sparse.shrink=null", "phases=[sparse]"),
    *("penalty.ratio=0.5", "penalty.start=0", "penalty.end=0.5", "data.limit_train=72", "data.batch_size=16"),
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Graphs are captured and run as they are: no compiler is needed. Gives the widths of what was compiled."""
    real, widths = torch.compile, []

    def compile(network: nn.Module, **options: Any) -> Any:
        widths.append(sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)))
        return real(network, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    yield widths
    torch._dynamo.reset()


def test_a_compiled_run_survives_rebuilds_and_ends_like_one_that_is_not(tmp_path: Path, compiled: list[int]) -> None:
    plain = run(tmp_path / "plain", *SLIMMING)
    assert compiled == []
    told = run(tmp_path / "compiled", *SLIMMING, "trainer.compile=true")
    assert compiled[0] > min(compiled), "the thin network was compiled anew, within the sparse phase"
    assert told["phases"]["sparse"]["slimmed"] == plain["phases"]["sparse"]["slimmed"] != []
    for key, values in plain["history"]["sparse"].items():
        assert told["history"]["sparse"][key] == pytest.approx(values, rel=1e-4), key
    names = torch.load(tmp_path / "compiled" / "sparse" / "last.ckpt")["state_dict"]
    assert all(name.startswith("network.") for name in names), "no weight is kept twice"
