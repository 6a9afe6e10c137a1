"""Packages of the extras, imported when a format asks for them, and kept quiet."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
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


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Exporters and quantizers without their progress, hints and deprecations of each other; what fails is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        unread = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
