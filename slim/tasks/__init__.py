"""Ordinary LightningModules, one per task; nothing in them knows that a network may lose channels.

They are imported on first use: Lightning takes seconds to import, and a command line must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim.tasks.classification import Classification
    from slim.tasks.detection import Detection
    from slim.tasks.detector_boxes import AllBoxes, for_runtimes
    from slim.tasks.detector_view import RawOutputs, raw_outputs
    from slim.tasks.segmentation import Segmentation

__all__ = ["AllBoxes", "Classification", "Detection", "RawOutputs", "Segmentation", "for_runtimes", "raw_outputs"]

_PLACES = {
    "AllBoxes": "slim.tasks.detector_boxes",
    "Classification": "slim.tasks.classification",
    "Detection": "slim.tasks.detection",
    "RawOutputs": "slim.tasks.detector_view",
    "Segmentation": "slim.tasks.segmentation",
    "for_runtimes": "slim.tasks.detector_boxes",
    "raw_outputs": "slim.tasks.detector_view",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
