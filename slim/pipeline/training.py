"""One training phase: a fresh Trainer, from the network before it to the network after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from slim import sparsity
from slim.callbacks.checkpoint import SafeFiles, Saver, read
from slim.callbacks.guard import Guard
from slim.callbacks.progress import Progress
from slim.callbacks.signals import Signals
from slim.callbacks.slimming import Slimming
from slim.channels import ChannelGraph, Plan
from slim.module import Classifier
from slim.pipeline import cut, rates, schedule, teacher
from slim.pipeline.failures import explained, quiet
from slim.pipeline.feed import Feed, seed_all
from slim.pipeline.outlook import outlook
from slim.pipeline.ranks import together
from slim.pipeline.settings import PHASES, Settings, Sparse
from slim.pipeline.workspace import Workspace, plan_json
from slim.recovery import Distillation


@dataclass
class Trained:
    """What a training phase leaves."""

    network: nn.Module
    record: dict[str, Any]
    history: dict[str, list[float]]
    plan: Plan | None


def train(
    work: Workspace,
    directory: Path,
    name: str,
    network: nn.Module,
    signals: Signals,
    *,
    number: int = 0,
    cut_next: bool = False,
    note: Any = None,
) -> Trained:
    """Train ``network`` for the phase ``name``, or go on with it where its checkpoint ends.

    Args:
        work: What the run works with.
        directory: The run directory; curves and the checkpoint go to ``directory/name``.
        name: ``baseline``, ``sparse``, ``finetune``, with ``-2`` and so on for later passes.
        network: Trained in place, unless a checkpoint holds a thinner one.
        signals: Looked at between steps.
        number: Of the pass, 0-based.
        cut_next: Rank all gammas when training ends.
        note: Called with lines for the report.
    """
    settings, hardware = work.settings, work.hardware
    kind = name.partition("-")[0]
    training = getattr(settings, kind)
    checkpoint = directory / name / "last.ckpt"
    saved = read(checkpoint) if checkpoint.is_file() else None
    start = network
    if saved is not None and saved["slim"]["plan"] != plan_json(network):
        network = work.with_plan(saved["slim"]["plan"])
    limit = settings.trainer.limit_batches
    feed = Feed(work.data.train_dataloader(), (settings.seed, number), limit=limit)
    earlier = 0.0
    if saved is not None:
        # Lightning hands a loader its state back within an epoch, but not at the end of one.
        feed.load_state_dict(saved["slim"]["feed"])
        earlier = saved["slim"]["seconds"]
    per_epoch = -(-(len(feed) // settings.trainer.devices) // settings.trainer.accumulate)
    steps = per_epoch * training.epochs
    lr, factor = _rates(settings, kind, per_epoch)
    graph = work.trace(network)
    penalty = None
    if kind == "sparse":
        # Of the network that the phase began with, also when it goes on with a thinner one: same law, same line.
        penalty = _penalty(work, training, start, number, rates.total(factor, lr, steps), note or (lambda line: None))
        if saved is not None:
            penalty.load_state_dict(saved["classifier"]["penalty"])
    # Lightning leaves modes as it finds them.
    network.train()
    distillation = None
    if (heard := teacher.load(work, directory, kind, number)) is not None:
        told = settings.distills[kind]
        distillation = Distillation(heard, told.temperature, told.weight)
    module = Classifier(
        network,
        optimizer=lambda parameters: work.optimizer(parameters, lr),
        rate=factor,
        total_steps=steps,
        penalty=penalty,
        graph=graph,
        outlook=outlook(work, number) if kind == "sparse" else None,
        label_smoothing=training.label_smoothing,
        distillation=distillation,
        channels_last=hardware.channels_last,
        compile=settings.trainer.compile,
        log_every=settings.trainer.log_every,
    )
    slimming = Slimming(
        work.trace,
        choose=(lambda traced: traced.plan(cut.select(work, traced, number).removed)) if cut_next else None,
        every=training.slim_every if isinstance(training, Sparse) else 0,
        absorb=_absorb,
        min_channels=settings.prune.min_channels,
    )
    saver = Saver(
        checkpoint,
        beside=lambda: {
            "plan": plan_json(network),
            "feed": feed.state_dict(),
            "seconds": earlier + time.monotonic() - began,
        },
        signals=signals,
        every_steps=settings.trainer.checkpoint_every,
    )
    callbacks: list[pl.Callback] = [
        Guard(kind),
        Progress(name, steps, settings.trainer.progress),
        *schedule.callbacks(work, directory, name, number),
        slimming,
        *_dashboard(module),
        saver,
    ]
    seed_all(settings.seed, number, PHASES.index(kind))
    began = time.monotonic()
    several = together(directory, name, number, network, settings.trainer.devices, hardware.accelerator == "gpu")
    with quiet(), explained(settings.data.get("batch_size")), several:
        trainer = _trainer(work, training.epochs, directory, name, saved, callbacks)
        # Loaders put their batches on the trainer's device, and give each process its share.
        work.data.trainer = trainer
        feed.resize(work.data.train_dataloader())
        val = work.data.val_dataloader()
        val = Feed(val, (settings.seed,), limit=limit) if val else None
        trainer.fit(module, feed, val, ckpt_path=checkpoint if saved is not None else None)
        work.data.trainer = None
    seconds = earlier + time.monotonic() - began
    network.cpu().eval()
    return Trained(network, _record(module, training.epochs, steps, seconds, slimming), module.history, slimming.plan)


def _rates(settings: Settings, kind: str, per_epoch: int) -> tuple[float, Callable[[int], float]]:
    """Base learning rate of a phase, and the factor on it at every step.

    The fine-tune may replay the end of the training before the cut.
    """
    lent = settings.first if kind == "finetune" and settings.finetune.lr_rewind is not None else None
    training = getattr(settings, lent or kind)
    lr = training.lr or settings.optimizer.get("lr", 0.1)
    factor = rates.rate(settings.scheduler, per_epoch * training.epochs)
    if lent is not None:
        factor = rates.tail(factor, per_epoch * (training.epochs - settings.finetune.epochs))
    return lr, factor


def _penalty(
    work: Workspace, training: Sparse, network: nn.Module, number: int, lrs: list[float], note: Any
) -> sparsity.Penalty:
    """The law, its budget that of the pass, its lam scaled to the run when ``shrink`` says so; its forecast is spoken.

    It is attached to nothing yet.
    """
    momentum = float(work.settings.optimizer.get("momentum", 0.0))
    graph = work.trace(network)
    told = cut.told(work, graph, number)
    penalty, lam = work.penalty(**told), None
    penalty.attach(network, graph, len(lrs))
    forecast = penalty.forecast(lrs, momentum)
    if training.shrink is not None and work.settings.penalty.get("lam"):
        # What a law can take off a gamma is proportional to its lam.
        lam = work.settings.penalty["lam"] * training.shrink / forecast.shrink_budget
        penalty = work.penalty(lam, **told)
        penalty.attach(network, graph, len(lrs))
        forecast = penalty.forecast(lrs, momentum)
    note(forecast.line)
    return work.penalty(lam, **told)


def _absorb(network: nn.Module, graph: ChannelGraph, removed: npt.NDArray[np.bool_]) -> None:
    from slim import recovery

    recovery.absorb(network, removed, graph, in_place=True)


def _dashboard(module: Classifier) -> list[pl.Callback]:
    from slim.callbacks.dashboard import Dashboard

    return [Dashboard()]


def _trainer(
    work: Workspace, epochs: int, directory: Path, name: str, saved: dict[str, Any] | None, callbacks: list[pl.Callback]
) -> pl.Trainer:
    wanted, hardware = work.settings.trainer, work.hardware
    # Points after the checkpoint belong to a past that did not happen; TensorBoard drops what is purged. A phase that
    # was killed before its first checkpoint may have left points, too.
    purge = 0 if saved is None else int(saved["global_step"]) + 1
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=wanted.devices,
        strategy="ddp" if wanted.devices > 1 else "auto",
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        accumulate_grad_batches=wanted.accumulate,
        gradient_clip_val=wanted.clip,
        num_sanity_val_steps=0,
        deterministic=wanted.deterministic,
        logger=TensorBoardLogger(directory, name="", version=name, purge_step=purge),
        callbacks=callbacks,
        plugins=[SafeFiles()],
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=wanted.log_every,
        use_distributed_sampler=False,
        default_root_dir=directory,
    )


def _record(module: Classifier, epochs: int, steps: int, seconds: float, slimming: Slimming) -> dict[str, Any]:
    record: dict[str, Any] = {"epochs": epochs, "steps": steps, "seconds": seconds}
    scores = module.history.get("val_accuracy", [])
    if scores:
        best = max(range(len(scores)), key=lambda epoch: scores[epoch])
        record |= {"val": scores[-1], "best_val": scores[best], "best_epoch": best + 1}
    if slimming.history:
        record["slimmed"] = slimming.history
    return record
