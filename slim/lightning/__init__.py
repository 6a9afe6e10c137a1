"""Slimming for any LightningModule, as callbacks of any Trainer.

    trainer = pl.Trainer(callbacks=[SparseTraining("l1", lam=1e-4), ChannelPruning(macs=0.5, at=20)], max_epochs=30)
    trainer.fit(mine, data)

One file each. In a file of LightningCLI the options of a law stand under ``dict_kwargs``. Importing this package loads
Lightning, and lets ``load_from_checkpoint`` of any module give the thin network of a pruned one. A loop of one's own
with Fabric has the law in five lines, see :func:`slim.sparsity.install`:

>>> import torch, slim
>>> from lightning_fabric import Fabric
>>> from torch import nn
>>> net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.ones(2, 3, 8, 8)
>>> fabric = Fabric(accelerator="cpu", devices=1)
>>> law = slim.sparsity.build("prox", lam=1.0)
>>> law.attach(net, slim.trace(net, x), total_steps=2)
>>> model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
>>> handle = slim.sparsity.install(law, optimizer)
>>> for _ in range(2):
...     optimizer.zero_grad(); fabric.backward(model(x).mean()); _ = optimizer.step()
>>> bool((net[1].weight < 0.9).all())
True
>>> slim.rebuild(net, slim.prune(net, x, ratio=0.5).plan, in_place=True, optimizer=optimizer)[0].out_channels
4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slim.lightning.checkpoint import instantiate, instantiate_by_cli, load

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
    "instantiate_by_cli",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a callback when somebody asks for it."""
    if name not in _LAZY:
        raise AttributeError(f"module 'slim.lightning' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
