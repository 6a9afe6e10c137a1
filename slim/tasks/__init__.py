"""Ordinary LightningModules, one per task; nothing in them knows that a network may lose channels.

They are imported on first use: Lightning takes seconds to import, and a command line must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim.tasks.classification import Classification

__all__ = ["Classification"]

_PLACES = {"Classification": "slim.tasks.classification"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
