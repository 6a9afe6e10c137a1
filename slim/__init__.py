"""Network Slimming for any convolutional network: trace, score, select, rebuild.

>>> import torch, slim
>>> conv = torch.nn.Conv2d
>>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), conv(8, 4, 1))
>>> graph = slim.trace(net, torch.zeros(1, 3, 8, 8))
>>> len(graph)
15
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from slim.errors import RunFailed, SlimError

if TYPE_CHECKING:
    from slim.artifact import load as load
    from slim.artifact import save as save
    from slim.channels import ChannelGraph as ChannelGraph
    from slim.channels import Plan as Plan
    from slim.channels import fold as fold
    from slim.channels import mask as mask
    from slim.channels import rebuild as rebuild
    from slim.channels import trace as trace
    from slim.criteria import score as score
    from slim.selection import select as select
    from slim.selection import select_groups as select_groups
    from slim.shortcut import prune as prune

_LAZY = {
    **dict.fromkeys(("ChannelGraph", "Plan", "fold", "mask", "rebuild", "trace"), "slim.channels"),
    "load": "slim.artifact",
    "save": "slim.artifact",
    "score": "slim.criteria",
    "select": "slim.selection",
    "select_groups": "slim.selection",
    "prune": "slim.shortcut",
}
_PACKAGES = ("channels", "recovery", "sensitivity", "sparsity")

__all__ = [
    "ChannelGraph",
    "Plan",
    "RunFailed",
    "SlimError",
    "fold",
    "load",
    "mask",
    "prune",
    "rebuild",
    "save",
    "score",
    "select",
    "select_groups",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import what somebody asks for, and torch with it: ``train.py --help`` and a mistyped line need neither."""
    if name in _PACKAGES:
        return importlib.import_module(f"slim.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'slim' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_PACKAGES})
