"""Data sets as Lightning data modules; batches depend on (seed, epoch, step) alone.

The modules are imported on first use: Lightning takes seconds to import, and a command line must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim.data.datamodules import (
        CIFAR10Data,
        CIFAR100Data,
        DigitsData,
        FashionMNISTData,
        ImageFolderData,
        MNISTData,
        SVHNData,
    )
    from slim.data.image_data import ImageData
    from slim.data.loader import BatchLoader

__all__ = [
    "BatchLoader",
    "CIFAR10Data",
    "CIFAR100Data",
    "DigitsData",
    "FashionMNISTData",
    "ImageData",
    "ImageFolderData",
    "MNISTData",
    "SVHNData",
]

_PLACES = {"BatchLoader": "slim.data.loader", "ImageData": "slim.data.image_data"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES.get(name, "slim.data.datamodules")), name)
