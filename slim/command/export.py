"""Write a network for a runtime: ONNX, PyTorch, int8."""

from __future__ import annotations

import argparse
from typing import Any

from slim.command import model
from slim.errors import SlimError


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    model.arguments(parser)


def perform(args: argparse.Namespace) -> dict[str, Any]:
    """Export the network that ``model.find(args.model, args)`` gives."""
    found = model.find(args.model, args)
    raise SlimError(f"Nothing exports yet. Got {found.name}. Use phases=[...,export] of a run.")


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    return "\n".join(found["files"])
