"""Hooks of layers that see the input by position, however a forward names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Handle:
    """Takes hooks off again."""

    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        """From now on the layer runs without them."""
        for handle in self._handles:
            handle.remove()


def before_call(layer: nn.Module, hook: Callable[..., Any]) -> Handle:
    """``layer.register_forward_pre_hook``, where ``layer(input=x)`` is ``layer(x)``."""
    return Handle(_named_once(layer), layer.register_forward_pre_hook(hook))


def after_call(layer: nn.Module, hook: Callable[..., Any]) -> Handle:
    """``layer.register_forward_hook``, where ``layer(input=x)`` is ``layer(x)``.

    >>> import torch
    >>> layer, seen = nn.Linear(2, 3), []
    >>> handle = after_call(layer, lambda _, args, out: seen.append((len(args), *out.shape)))
    >>> _ = layer(input=torch.zeros(5, 2)); handle.remove(); _ = layer(torch.zeros(5, 2)); seen
    [(1, 5, 3)]
    """
    return Handle(_named_once(layer), layer.register_forward_hook(hook))


def _named_once(layer: nn.Module) -> Any:
    return layer.register_forward_pre_hook(_by_position, with_kwargs=True, prepend=True)


def _by_position(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return (tuple(kwargs.values()), {}) if not args and len(kwargs) == 1 else None
