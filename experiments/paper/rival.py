"""Torch-Pruning's BNScalePruner in the same data, recipe and number of epochs: its regularization, ranking and cut."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

import slim
from slim.channels import count_macs, count_params
from slim.command.compose import compose
from slim.files import write_json
from slim.lightning import Distillation
from slim.lightning.rates import replay_learning_rates
from slim.models import build
from slim.report import environment, latency
from slim.runs.components import Components
from slim.runs.failures import quiet
from slim.runs.prepare import prepare

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Regularization(pl.Callback):
    """``pruner.regularize`` before each optimizer step, as its examples do after ``backward``.

    Args:
        shrink: The most that a gamma can lose, as of ``sparse.shrink``: its coefficient follows from the length of the
            training, as lam of L1 does. None: the 1e-4 of its examples, which in a short training is hardly any.
    """

    def __init__(self, pruner: Any, network: nn.Module, shrink: float | None) -> None:
        self._pruner, self._network, self._shrink = pruner, network, shrink

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the coefficient under the learning rates of the phase."""
        if self._shrink is not None:
            (optimizer,) = trainer.optimizers
            travelled = sum(replay_learning_rates(trainer, optimizer))
            self._pruner.reg = self._shrink * (1 - optimizer.param_groups[0]["momentum"]) / travelled

    def on_before_optimizer_step(self, *_: Any) -> None:
        """gamma.grad += reg * sign(gamma)."""
        self._pruner.regularize(self._network)


def run(overrides: list[str], directory: Path, teacher: Path | None = None) -> dict[str, Any]:
    """Sparse training, the cut to ``prune.macs`` or ``prune.ratio``, fine-tuning, one test; leaves ``report.json``.

    A finished job is not repeated; one that was killed begins again.
    """
    path = directory / "report.json"
    if path.is_file():
        return {}
    config, _ = compose(overrides, _Args())
    parts = prepare(config)
    teaching = None if teacher is None else _teacher(parts, teacher)
    pl.seed_everything(parts.config.seed, workers=True, verbose=False)
    module, began = parts.module("sparse"), time.monotonic()
    network = parts.network(module)
    pruner = _pruner(network, parts)
    with quiet():
        _fit(parts, module, "sparse", teaching, Regularization(pruner, network, parts.config.sparse.shrink))
        dense = count_macs(network.eval(), parts.example)
        _cut(network, pruner, parts, dense)
        thin = parts.module("finetune")
        thin.network = network
        thin._run = type(thin._run)(network, channels_last=parts.hardware.channels_last)
        at_cut = _accuracy(parts, thin)
        _fit(parts, thin, "finetune", teaching)
        accuracy = _accuracy(parts, thin)
    seconds = time.monotonic() - began
    rows = {"dense": {"macs": dense}, "rebuilt": {"metric": at_cut}, "finetuned": {"metric": accuracy}}
    rows["finetuned"] |= {"macs": count_macs(network.cpu().eval(), parts.example), "params": count_params(network)}
    _time(parts, network, rows)
    report = {"status": "finished", "rows": rows, "reg": pruner.reg, "seconds": seconds,
              "environment": environment.describe()}  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    return report


class _Args:
    config_dir = config_name = None


def _pruner(network: nn.Module, parts: Components) -> Any:
    import torch_pruning as tp

    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    return tp.pruner.BNScalePruner(
        network, parts.example, importance=tp.importance.BNScaleImportance(), reg=1e-4,
        global_pruning=parts.config.prune.strategy != "layer", pruning_ratio=0.95, iterative_steps=200,
        max_pruning_ratio=parts.config.prune.max_layer_ratio, ignored_layers=[last],
    )  # fmt: skip


def _cut(network: nn.Module, pruner: Any, parts: Components, dense: int) -> None:
    """Step by step until the budget is met.

    Raises:
        RuntimeError: if it cannot be met.
    """
    prune, width = parts.config.prune, _channels(network)
    for _ in range(200):
        pruner.step()
        left = count_macs(network, parts.example) / dense if prune.ratio is None else _channels(network) / width
        if left <= (prune.macs if prune.ratio is None else 1 - prune.ratio):
            return
    raise RuntimeError(f"Torch-Pruning stopped at {left:.2%} of the dense network")


def _channels(network: nn.Module) -> int:
    return sum(layer.num_features for layer in network.modules() if isinstance(layer, BatchNorm))


def _accuracy(parts: Components, module: Any) -> float:
    """Of the test images."""
    (figures,) = _trainer(parts, 1).test(module, datamodule=parts.data, verbose=False)
    return float(figures["test/accuracy"])


def _time(parts: Components, network: nn.Module, rows: dict[str, dict[str, Any]]) -> None:
    """Add the latency beside the dense network's, as the reports of our runs do."""
    device = parts.hardware.device
    networks = {"dense": parts.dense().to(device), "finetuned": network.to(device)}
    found = latency.compare(networks, parts.example.to(device), seconds=parts.config.latency_seconds)
    for name, millis in found.millis.items():
        rows[name] |= {f"latency_ms_b{batch}": median for batch, median in millis.items()}


def _teacher(parts: Components, file: Path) -> nn.Module:
    model = dict(parts.config.model)
    dense = build(model.pop("_target_"), parts.data.num_classes, parts.data.in_channels, **model)
    return slim.load(file, dense)


def _fit(parts: Components, module: Any, phase: str, teacher: nn.Module | None, *callbacks: pl.Callback) -> None:
    settings = parts.config.training(phase).distill
    taught = [Distillation(teacher, temperature=settings.temperature, weight=settings.weight)] if teacher else []
    _trainer(parts, parts.config.training(phase).epochs, [*callbacks, *taught]).fit(
        module.train(), datamodule=parts.data
    )


def _trainer(parts: Components, epochs: int, callbacks: list[pl.Callback] | None = None) -> pl.Trainer:
    return pl.Trainer(
        accelerator=parts.hardware.accelerator, devices=1, precision=parts.hardware.precision, max_epochs=epochs,
        callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip


if __name__ == "__main__":
    import sys

    torch.set_float32_matmul_precision("high")
    place, given, *line = sys.argv[1:]
    run(line, Path(place), None if given == "-" else Path(given))
