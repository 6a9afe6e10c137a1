"""Lightning's fit, with our module and callbacks and logging, against a bare PyTorch loop of the same step."""

from __future__ import annotations

import cProfile
import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

import slim
from experiments.bench.row import Row
from experiments.bench.steps import BATCH, Step, chosen, network
from experiments.bench.turns import take_turns
from slim.data.loader import BatchLoader, Preprocessing
from slim.data.memory import MemorySource
from slim.lightning import GammaDashboard, SparseTraining
from slim.runs.failures import quiet
from slim.runs.finite import Finite
from slim.runs.hardware import Choice
from slim.runs.loaders import ResumableLoader
from slim.runs.progress import Progress
from slim.runs.schema import Metric
from slim.sparsity import build
from slim.tasks import Classification


class Clock(pl.Callback):
    """Seconds between the first batch and the last: Trainer construction is paid once per phase, not per step."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self.profile = profile

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.profile is not None:
            self.profile.enable()
        self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.profile is not None:
            self.profile.disable()
        self.seconds = time.perf_counter() - self.start


def run(quick: bool) -> list[Row]:
    """At most 3 % more than the bare loop, both with the L1 law, both fed by our loader. ResNet-20, batch 128."""
    batch, steps = (16, 6) if quick else (BATCH, 40)
    machine = chosen()
    turns = take_turns(
        {"bare": lambda: bare(machine, batch, steps), "lightning": lambda: lightning(machine, batch, steps)},
        2 if quick else 7,
    )
    return [
        Row(
            "loop",
            f"fit over a bare loop, resnet-20, batch {batch}, {steps} steps",
            100 * (turns.ratio("lightning", "bare") - 1),
            "%",
            ("<=", 3.0),
            turns.seconds,
        )
    ]


def bare(machine: Choice, batch: int, steps: int) -> float:
    """Seconds of an epoch in plain PyTorch."""
    model = network("resnet", depth=20)
    law = build("l1", lam=1e-4)
    step = Step(
        model,
        machine.precision == "bf16-mixed",
        machine.channels_last,
        machine.device.type,
        law.before_step,
        law.after_step,
    )
    law.attach(model, slim.trace(model, torch.zeros(1, 3, 32, 32, device=machine.device)), steps)
    batches = _loader(batch, steps)
    start = time.perf_counter()
    for x, y in batches:
        step(x, y)
    return time.perf_counter() - start


def lightning(machine: Choice, batch: int, steps: int, profile: cProfile.Profile | None = None) -> float:
    """Seconds of the same epoch in Lightning, from the first batch to the last."""
    model = network("resnet", depth=20)
    module = Classification(
        model,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4),
        channels_last=machine.channels_last,
    )
    sparse = SparseTraining("l1", lam=1e-4, example=torch.zeros(1, 3, 32, 32))
    clock = Clock(profile)
    with tempfile.TemporaryDirectory() as folder, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callbacks = [Finite("sparse"), sparse, Progress("bench", Metric(), "none"), GammaDashboard(), clock]
        trainer = _trainer(folder, machine, callbacks)
        trainer.fit(module, ResumableLoader(_loader(batch, steps), (0, 0)))
    return clock.seconds


def _loader(batch: int, steps: int) -> BatchLoader:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (batch * steps, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (len(pictures),), generator=generator)
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, 32, padding=4, mirror=True, augment=True)
    source = MemorySource(pictures, labels)
    return BatchLoader(source, torch.arange(len(pictures)), preprocessing, batch_size=batch, seed=0, train=True)


def _trainer(folder: str, machine: Choice, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        accelerator=machine.accelerator,
        devices=1,
        precision=machine.precision,
        max_epochs=1,
        logger=TensorBoardLogger(folder, name="", version="bench"),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path(folder),
    )
