"""Global random generators in checkpoints, which Lightning leaves out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


class RandomState(pl.Callback):
    """Saves the state of Python's, NumPy's and torch's generators, and puts it back when a fit goes on.

    With it a fit that shuffles, augments or drops out and is resumed from a checkpoint of an epoch's end computes the
    same bits as one that was never stopped. Lightning alone restores weights, optimizers, schedulers, loops and the
    states of callbacks and stateful loaders. Under DDP the checkpoint has the generators of rank 0, which every rank
    takes up; a sampler that shuffles by epoch (``DistributedSampler``) does not depend on them.

    Workers of a DataLoader are seeded from torch's generator when an epoch begins, and so follow.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds ``checkpoint["slim"]["generators"]``: plain data and tensors."""
        checkpoint.setdefault("slim", {})["generators"] = generators()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the generators before the loader of the first epoch starts, which draws its seed from them."""
        self._loaded = checkpoint.get("slim", {}).get("generators")
        if self._loaded is not None and trainer.state.fn == "fit":
            set_generators(self._loaded)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore them again where the loader is started after this (Lightning before 2.6)."""
        if self._loaded is not None and not hasattr(trainer.fit_loop, "is_resuming"):
            set_generators(self._loaded)
        self._loaded = None


@contextmanager
def preserved() -> Iterator[None]:
    """Restore all global random generators at the end, whatever was drawn inside."""
    before = generators()
    try:
        yield
    finally:
        set_generators(before)


def generators() -> dict[str, Any]:
    """State of all global random generators, as plain data and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(state: dict[str, Any]) -> None:
    """The inverse of :func:`generators`; states of GPUs are left out where there are fewer or more of them now."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
