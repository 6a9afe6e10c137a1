"""Slimming for any LightningModule, as callbacks of any Trainer.

    trainer = pl.Trainer(callbacks=[SparseTraining("l1", lam=1e-4), ChannelPruning(macs=0.5, at=20)], max_epochs=30)
    trainer.fit(mine, data)

One file each. Importing this package imports Lightning, and lets ``load_from_checkpoint`` of any module give the thin
network of a pruned one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slim.lightning.checkpoint import instantiate, load

if TYPE_CHECKING:
    from slim.lightning.dashboard import GammaDashboard as GammaDashboard
    from slim.lightning.distillation import Distillation as Distillation
    from slim.lightning.example import capture_example as capture_example
    from slim.lightning.network import find_network as find_network
    from slim.lightning.pruning import ChannelPruning as ChannelPruning
    from slim.lightning.random_state import RandomState as RandomState
    from slim.lightning.soft import SoftPruning as SoftPruning
    from slim.lightning.sparse import SparseTraining as SparseTraining

_LAZY = {
    "ChannelPruning": "slim.lightning.pruning",
    "Distillation": "slim.lightning.distillation",
    "GammaDashboard": "slim.lightning.dashboard",
    "RandomState": "slim.lightning.random_state",
    "SoftPruning": "slim.lightning.soft",
    "SparseTraining": "slim.lightning.sparse",
    "capture_example": "slim.lightning.example",
    "find_network": "slim.lightning.network",
}

__all__ = [
    "ChannelPruning",
    "Distillation",
    "GammaDashboard",
    "RandomState",
    "SoftPruning",
    "SparseTraining",
    "capture_example",
    "find_network",
    "instantiate",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a callback when somebody asks for it."""
    if name not in _LAZY:
        raise AttributeError(f"module 'slim.lightning' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
