"""What modules keep beside their tensors (caches, counters, random generators) is afterwards as it was before."""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
Undo = Callable[[], object]


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """On exit every module has the parameters, buffers, children and attributes that it has now, with their content.

    What an attribute holds is looked into: containers, plain objects, random generators, small tensors.
    """
    seen: set[int] = {id(t) for t in (*model.parameters(), *model.buffers())}
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    undo = [u for module in modules for u in _undo(module.__dict__, seen, DEPTH)]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _undo(value: Any, seen: set[int], depth: int) -> Iterator[Undo]:
    """What gives ``value`` and what is in it the content that they have now."""
    if type(value) in _PLAIN or id(value) in seen or not depth:
        return
    seen.add(id(value))
    parts: Any = ()
    if isinstance(value, dict):
        parts = list(value.values())
        yield partial(_refill_dict, value, list(value.items()))
    elif isinstance(value, (list, deque)):
        parts = list(value)
        yield partial(_refill_list, value, parts)
    elif isinstance(value, set):
        yield partial(_refill_set, value, set(value))
    elif isinstance(value, tuple):
        parts = value
    elif isinstance(value, Tensor):
        if value.numel() <= COUNTERS and not (value.is_meta or value.is_inference()):
            yield partial(_recount, value, value._version, value.detach().clone())
    elif isinstance(value, torch.Generator):
        yield partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield partial(value.setstate, value.getstate())
    elif isinstance(value, np.random.Generator):
        yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        yield partial(value.set_state, value.get_state())
    elif hasattr(value, "__dict__") and not isinstance(value, _OPAQUE):
        parts = (vars(value),)
    for part in parts if len(parts) <= LENGTH else ():
        yield from _undo(part, seen, depth - 1)


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
