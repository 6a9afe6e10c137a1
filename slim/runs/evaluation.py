"""The metric of a module on held-out or test data, through Lightning; a warning about layers that are too thin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from slim.errors import SlimError
from slim.runs.components import Components
from slim.runs.curves import tags_of
from slim.runs.failures import quiet
from slim.runs.loaders import seed_all
from slim.runs.schema import Metric
from slim.runs.trainer import evaluation_trainer

BATCHES_WITHOUT_VALIDATION = 8
"""Training batches that stand in for validation where nothing is held out."""


def evaluate(parts: Components, module: pl.LightningModule, split: str) -> float:
    """The run's metric of ``module``, in eval mode and full precision.

    Args:
        parts: Of the run.
        module: Not changed; its modes are as before when this returns.
        split: ``val`` or ``test``. Where no images are held out, a few of training stand in for validation.

    Raises:
        SlimError: The module does not log the metric.
    """
    return lookup(parts.config.metric, metrics(parts, module, split), split)


def metrics(parts: Components, module: pl.LightningModule, split: str, limit: int | None = None) -> dict[str, float]:
    """Everything that ``module`` logs in one pass over ``split``, at most ``limit`` batches."""
    with quiet():
        if split == "test":
            trainer = _test(parts, module, limit)
        elif has_validation(parts.data):
            trainer = evaluation_trainer(parts, limit_val_batches=limit)
            trainer.validate(module, datamodule=parts.data, verbose=False)
        else:
            trainer = evaluation_trainer(parts, limit_val_batches=limit)
            # As a loader: Lightning takes a list for several of them.
            batches = DataLoader(_training_batches(parts.data), batch_size=None)
            trainer.validate(module, dataloaders=batches, verbose=False)
    parts.data.trainer = None  # which holds the module
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}


def _test(parts: Components, module: pl.LightningModule, limit: int | None) -> pl.Trainer:
    """A pass over the test data, by the validation step where a test step is missing or logs other things."""
    if is_overridden("test_step", module):
        trainer = evaluation_trainer(parts, limit_test_batches=limit)
        trainer.test(module, datamodule=parts.data, verbose=False)
        if any(tag in trainer.callback_metrics for tag in tags_of(parts.config.metric.name, "test")):
            return trainer
    trainer = evaluation_trainer(parts, limit_val_batches=limit)
    trainer.validate(module, dataloaders=parts.data.test_dataloader(), verbose=False)
    return trainer


def lookup(metric: Metric, found: Mapping[str, float], split: str) -> float:
    """The value of ``metric`` among the logged tags, under ``val/``, ``val_`` and similar prefixes.

    >>> lookup(Metric(name="loss", mode="min"), {"val_loss": 0.5}, "val")
    0.5
    """
    for tag in tags_of(metric.name, split):
        if tag in found:
            return found[tag]
    names = ", ".join(sorted(found)) or "nothing"
    raise SlimError(
        f"metric.name must be a metric that the module logs in {'test' if split == 'test' else 'validation'}_step. "
        f"Got metric.name={metric.name}; it logs {names}. Set metric.name and metric.mode."
    )


def has_validation(data: Any) -> bool:
    """Whether the data module has validation data."""
    loader = data.val_dataloader() if is_overridden("val_dataloader", data, pl.LightningDataModule) else None
    return loader is not None and not (isinstance(loader, list) and not loader)


def validation_batches(data: Any) -> Any:
    """Validation batches, or training batches where nothing is held out."""
    return data.val_dataloader() if has_validation(data) else _training_batches(data)


def _training_batches(data: Any) -> Any:
    if hasattr(data, "plain_batches"):
        return data.plain_batches(BATCHES_WITHOUT_VALIDATION)
    return first_batches(data, BATCHES_WITHOUT_VALIDATION)


def first_batches(data: Any, count: int, seed: int = 0) -> list[Any]:
    """The first ``count`` training batches, always the same: a loader may shuffle by the global generators."""
    with isolate_rng():
        seed_all(seed)
        return list(islice(data.train_dataloader(), count))


def bottleneck(widths: Mapping[str, Sequence[int]]) -> str | None:
    """A line about the layer that the cut left thinnest, when less than a twentieth of it is left, else ``None``.

    A wide layer can consist of channels that are each worth little and together everything: a ranking that scores them
    one by one takes them all.

    Args:
        widths: Module -> (channels of the dense network, channels left).

    >>> bottleneck({"conv1": (64, 30), "conv9": (512, 2)})
    'conv9 keeps 2 of 512 channels; if accuracy suffers, set prune.max_layer_ratio=0.9, or another criterion.'
    >>> bottleneck({"conv1": (64, 4), "in a branch that is gone": (64, 0)})
    """
    there = [name for name in widths if widths[name][1]]
    thinnest = min(there, key=lambda name: widths[name][1] / widths[name][0], default=None)
    if thinnest is None or widths[thinnest][1] >= 0.05 * widths[thinnest][0]:
        return None
    dense, left = widths[thinnest]
    return (
        f"{thinnest} keeps {left} of {dense} channels; if accuracy suffers, set prune.max_layer_ratio=0.9, "
        "or another criterion."
    )
