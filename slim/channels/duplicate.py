"""Copy a tree of modules, with given new tensors where wanted, and without what autograd holds on to."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from slim.errors import SlimError

_PLAIN = {bool, int, float, complex, str, bytes, type(None)}
# A convolution's own only fills in what files of old versions lack.
_SETTERS = {nn.Module.__setstate__, _ConvNd.__setstate__}
_CONTAINERS = {dict, set, collections.OrderedDict}


def _has_own_copy(kind: type[nn.Module]) -> bool:
    """Whether a class defines its own copying."""
    return (
        hasattr(kind, "__deepcopy__")
        or kind.__reduce_ex__ is not object.__reduce_ex__
        or kind.__reduce__ is not object.__reduce__
        or kind.__setstate__ not in _SETTERS
        or getattr(kind, "__getstate__", None) is not getattr(nn.Module, "__getstate__", None)
    )


class _Detaching(TorchFunctionMode):
    """Copies results of a forward as plain tensors; ``copy.deepcopy`` refuses those that have a graph.

    A module may keep one as an attribute: an activation, or what the hook of an older ``weight_norm`` computed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def deep_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """``copy.deepcopy`` of a module that may have run; what it keeps of its forward is copied without its graph.

    Raises:
        SlimError: It holds something that has no copy.
    """
    with _explained(module), _Detaching():
        return copy.deepcopy(module, memo)


def duplicate(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy of ``module`` and its submodules: a faster :func:`deep_copy`.

    Args:
        module: Not changed.
        memo: As in :func:`copy.deepcopy`, id of an object -> its copy; holds the new tensors.

    Raises:
        SlimError: It holds something that has no copy.
    """
    with _explained(module), _Detaching():
        return _duplicated(module, memo)


@contextmanager
def _explained(module: nn.Module) -> Iterator[None]:
    try:
        yield
    except TypeError as error:  # as pickle says it
        reason = " ".join(str(error).split())[:120]
        raise SlimError(
            f"A network must be one that copy.deepcopy copies. Got {type(error).__name__}: {reason} "
            f"({type(module).__name__}). Keep what has no copy, such as a lock or an open file, out of its attributes."
        ) from error


def _duplicated(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    found = memo.get(id(module))
    if found is not None:
        return found  # type: ignore[no-any-return]
    kind = type(module)
    if _has_own_copy(kind):
        copied: nn.Module = copy.deepcopy(module, memo)
        return copied
    new = kind.__new__(kind)
    memo[id(module)] = new
    state = new.__dict__
    for key, value in module.__dict__.items():
        if key == "_compiled_call_impl":
            continue  # compiled for the old shapes
        if type(value) in _PLAIN or (type(value) is tuple and all(type(part) in _PLAIN for part in value)):
            state[key] = value
        elif key in ("_parameters", "_buffers"):
            copies = ((n, memo[id(t)] if id(t) in memo else copy.deepcopy(t, memo)) for n, t in value.items())
            state[key] = type(value)(copies)
        elif key == "_modules":
            state[key] = type(value)((n, None if m is None else _duplicated(m, memo)) for n, m in value.items())
        elif type(value) in _CONTAINERS and not value:
            state[key] = type(value)()
        else:
            state[key] = copy.deepcopy(value, memo)
    return new
