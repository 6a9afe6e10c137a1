"""A fit on two processes: rank 0 decides, all ranks have the same thin network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.chaos.harness import exit_code, start
from slim import SlimError
from slim.lightning import ChannelPruning, load
from slim.lightning.example import quiet

from . import two_ranks
from .modules import Plain, trainer


def run_ranks(folder: Path, count: int = 2) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    ranks = [
        start(
            [str(folder)],
            folder / f"stderr{rank}",
            main=two_ranks.main,
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    codes = [exit_code(rank) for rank in ranks]
    assert codes == [0] * count, "\n".join((folder / f"stderr{rank}").read_text() for rank in range(count))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]


def test_both_ranks_have_the_same_scales_and_the_same_plan(tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path)
    assert not torch.equal(first["data"], second["data"]), "each has data of its own"
    assert first["hash"] == second["hash"]
    assert first["history"] == second["history"]
    assert first["steps"] == second["steps"] == 12
    for mine, theirs in zip(first["scales"], second["scales"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    after_the_cut = zip(first["statistics"][1], second["statistics"][1], strict=True)
    assert all(torch.equal(a, b) for a, b in after_the_cut), "recalibrated on other data, then made equal"
    widths = [[len(scale) for scale in scales] for scales in first["scales"]]
    assert widths[0] == [8, 8]
    assert widths[1] == widths[2] != [8, 8]
    # The averaged weights are what is left at the end. (Running statistics of the last batches are each rank's own.)
    weights = [name for name in first["state"] if name.endswith(("weight", "bias"))]
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in weights)
    with quiet():
        thin = load(Plain, tmp_path / "last.ckpt")
    assert [thin.net[1].num_features, thin.net[4].num_features] == widths[2]


def test_processes_that_hand_back_weights_only_are_refused_in_one_line() -> None:
    run = trainer(devices=2, strategy="ddp_spawn")
    with pytest.raises(SlimError, match="start_method=spawn"):
        ChannelPruning(macs=0.5).setup(run, Plain(), "fit")
