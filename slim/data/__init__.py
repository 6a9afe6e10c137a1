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
    from slim.data.detection import CocoDetectionData, DetectionDigits, VOCDetectionData
    from slim.data.image_data import ImageData
    from slim.data.loader import BatchLoader
    from slim.data.scenes import DigitScenes
    from slim.data.segmentation import OxfordPetData, SegmentationDigits, SegmentationFolder, VOCSegmentationData
    from slim.data.task_data import TaskData

__all__ = [
    "BatchLoader",
    "CIFAR10Data",
    "CIFAR100Data",
    "CocoDetectionData",
    "DetectionDigits",
    "DigitScenes",
    "DigitsData",
    "FashionMNISTData",
    "ImageData",
    "ImageFolderData",
    "MNISTData",
    "OxfordPetData",
    "SVHNData",
    "SegmentationDigits",
    "SegmentationFolder",
    "TaskData",
    "VOCDetectionData",
    "VOCSegmentationData",
]

_PLACES = {
    "BatchLoader": "slim.data.loader",
    "CocoDetectionData": "slim.data.detection",
    "DetectionDigits": "slim.data.detection",
    "DigitScenes": "slim.data.scenes",
    "ImageData": "slim.data.image_data",
    "OxfordPetData": "slim.data.segmentation",
    "SegmentationDigits": "slim.data.segmentation",
    "SegmentationFolder": "slim.data.segmentation",
    "TaskData": "slim.data.task_data",
    "VOCDetectionData": "slim.data.detection",
    "VOCSegmentationData": "slim.data.segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES.get(name, "slim.data.datamodules")), name)
