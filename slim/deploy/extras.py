"""Packages of the extras, imported when a format asks for them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from slim.errors import SlimError

EXTRAS = {
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "torchao": "torchao",
    "openvino": "openvino",
}


def need(name: str, *others: str) -> Any:
    """Import the package ``name``, and see that ``others`` are there.

    Raises:
        SlimError: One is not installed; the message has the extra that brings it.

    >>> need("json").__name__
    'json'
    """
    for package in (*others, name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about optional parts of theirs
                found = importlib.import_module(package)
        except ImportError as error:
            top = package.partition(".")[0]
            extra = EXTRAS.get(top, "export")
            raise SlimError(
                f"This format needs the package {top}. Got none ({error}). "
                f"Install slim-channels[{extra}], or change export.formats."
            ) from error
    return found
