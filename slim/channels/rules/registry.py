"""Where rules are registered, and how their arguments are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slim.channels.tracer import Tracer

Rule = Callable[[Tracer, Any, Sequence[Any], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten operations by name (without overload)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def positive_dim(dim: int, rank: int) -> int:
    """A negative axis counted from the front."""
    return dim + rank if dim < 0 else dim


def argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, name: str, default: Any) -> Any:
    """An argument given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)
