"""Tensors with a copy of their values, so that a step that does not help can be taken back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Saved = list[tuple[Tensor, Tensor]]


def saved(tensors: Iterable[Tensor]) -> Saved:
    """Each tensor with a copy of its values, for :func:`put_back`."""
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def put_back(old: Saved) -> None:
    """Give every tensor the values it had when it was saved."""
    with torch.no_grad():
        for tensor, values in old:
            tensor.copy_(values)
