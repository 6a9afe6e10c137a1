"""One rank of a fit on two: test_ranks.py runs it in a process of its own, in the environment of a torchrun worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from slim.channels import plan_of
from slim.lightning import ChannelPruning, SoftPruning, SparseTraining
from tests.lightning.averages import averages
from tests.lightning.modules import Plain, fit, images


class Seen(pl.Callback):
    """Scales after every epoch."""

    def __init__(self, average: list[Any]) -> None:
        self.average = average
        self.scales: list[Any] = []
        self.statistics: list[Any] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        nets = [module.net, *(callback._average_model.module.net for callback in self.average)]
        self.statistics.append([net[index].running_mean.clone() for net in nets for index in (1, 4)])
        self.scales.append([module.net[index].weight.detach().clone() for index in (1, 4)])


def main(argv: list[str]) -> int:
    torch.set_num_threads(1)
    folder = Path(argv[0])
    module, average = Plain(), averages()
    seen = Seen(average)
    criterion = {"name": "taylor", "batches": 1}
    pruning = ChannelPruning(macs=0.5, at=2, criterion=criterion, recover={"batches": 2})
    callbacks = [SparseTraining("l1", lam=0.05), SoftPruning(every=1), pruning, *average, seen]
    saver = ModelCheckpoint(folder, filename="last")
    run = fit(module, *callbacks, saver, data=images(32, 4), epochs=3, devices=2, strategy="ddp")
    found = {
        "scales": seen.scales,
        "statistics": seen.statistics,
        "state": module.state_dict(),
        "hash": plan_of(module.net).hash,
        "steps": run.global_step,
        "data": next(iter(run.train_dataloader))[0].sum(),
        "history": pruning.history,
    }
    torch.save(found, folder / f"rank{run.global_rank}.pt")
    return 0
