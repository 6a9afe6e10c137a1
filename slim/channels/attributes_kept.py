"""What modules keep beside their tensors (caches, counters, random generators) is afterwards as it was before."""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 5  # levels of containers and objects that are looked into
LENGTH = 2**12  # what is in longer containers is not looked into
COUNTERS = 2**12
"""Elements of a plain tensor that a forward may change in place: it counts in it, or has a queue."""

_OPAQUE = (nn.Module, type, FunctionType, MethodType, ModuleType)
_PLAIN = {bool, int, float, complex, str, bytes, type(None), weakref.ProxyType, weakref.CallableProxyType}
Undo = tuple[Any, ...]  # a function and its arguments


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """On exit every module has the parameters, buffers, children and attributes that it has now, with their content.

    What an attribute holds is looked into: containers, plain objects, random generators, small tensors.
    """
    seen: set[int] = {id(t) for t in (*model.parameters(), *model.buffers())}
    undo: list[Undo] = []
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            _remember(module.__dict__, undo, seen, DEPTH)
    try:
        yield
    finally:
        for restore, *args in undo:
            restore(*args)


def _remember(value: Any, undo: list[Undo], seen: set[int], depth: int) -> None:
    """Add to ``undo`` what gives ``value`` and what is in it the content that they have now."""
    if id(value) in seen or not depth:
        return
    seen.add(id(value))
    parts: Any = ()
    if isinstance(value, dict):
        undo.append((_refill_dict, value, list(value.items())))
        parts = value.values()
    elif isinstance(value, _OPAQUE):
        return
    elif isinstance(value, (list, deque)):
        undo.append((_refill_list, value, list(value)))
        parts = value
    elif isinstance(value, set):
        undo.append((_refill_set, value, set(value)))
    elif isinstance(value, tuple):
        parts = value
    elif isinstance(value, Tensor):
        if value.numel() <= COUNTERS and not (value.is_meta or value.is_inference()):
            undo.append((_recount, value, value._version, value.detach().clone()))
    elif isinstance(value, torch.Generator):
        undo.append((value.set_state, value.get_state()))
    elif isinstance(value, random.Random):
        undo.append((value.setstate, value.getstate()))
    elif isinstance(value, np.random.Generator):
        undo.append((setattr, value.bit_generator, "state", value.bit_generator.state))
    elif isinstance(value, np.random.RandomState):
        undo.append((value.set_state, value.get_state()))
    elif hasattr(value, "__dict__"):
        parts = (vars(value),)
    if len(parts) <= LENGTH:
        for part in parts:
            if type(part) not in _PLAIN:
                _remember(part, undo, seen, depth - 1)


def _refill_dict(store: Any, items: list[tuple[Any, Any]]) -> None:
    now = list(store.items())
    if len(now) != len(items) or any(a is not c or b is not d for (a, b), (c, d) in zip(now, items, strict=True)):
        store.clear()
        for key, value in items:
            store[key] = value


def _refill_list(store: Any, parts: list[Any]) -> None:
    if len(store) != len(parts) or any(a is not b for a, b in zip(store, parts, strict=True)):
        store.clear()
        store.extend(parts)


def _refill_set(store: set[Any], parts: set[Any]) -> None:
    if store != parts:
        store.clear()
        store.update(parts)


def _recount(tensor: Tensor, version: int, values: Tensor) -> None:
    if tensor._version != version:
        with torch.no_grad():
            tensor.copy_(values) if tensor.shape == values.shape else tensor.set_(values)  # type: ignore[call-overload]
