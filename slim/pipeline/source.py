"""A trained network from a file: an artifact, a checkpoint of a run, a run directory, or a plain state dict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import slim
from slim.errors import SlimError
from slim.files import read_torch

if TYPE_CHECKING:
    from slim.pipeline.workspace import Workspace


def load_network(work: Workspace, path: Path) -> nn.Module:
    """The network in ``path``, built from the configuration's model.

    Args:
        work: Gives the dense network.
        path: ``*.safetensors`` written by :func:`slim.save`; ``*.ckpt`` of a run; a run directory (its last network);
            or a state dict saved by ``torch.save`` (loaded with ``weights_only``).

    Raises:
        SlimError: Missing, damaged or hostile file, or one of another architecture.
    """
    if path.is_dir():
        path = _last_of(path)
    if not path.is_file():
        raise SlimError(f"checkpoint must be a file or a run directory. Got checkpoint={path}. Check the path.")
    if path.suffix == ".safetensors":
        return slim.load(path, work.dense())
    if path.suffix == ".ckpt":
        from slim.callbacks.checkpoint import read

        body = read(path)
        weights = {key.removeprefix("network."): value for key, value in body["state_dict"].items()}
        return _fill(work.with_plan(body["slim"]["plan"]), weights, path)
    return _fill(work.dense(), _state_dict(path), path)


def _last_of(directory: Path) -> Path:
    """The latest network of a run: the artifact, or what its last finished phase left."""
    found = [directory / "model.safetensors", *sorted(directory.glob("*/network.safetensors"), key=_age, reverse=True)]
    for path in found:
        if path.is_file():
            return path
    raise SlimError(
        f"checkpoint must hold a network. Got checkpoint={directory} without a finished phase. Check the path."
    )


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _state_dict(path: Path) -> dict[str, Any]:
    body = read_torch(path, what="checkpoint")
    for key in ("state_dict", "model"):
        if isinstance(body, dict) and isinstance(body.get(key), dict):
            body = body[key]
    if not isinstance(body, dict) or not all(isinstance(value, torch.Tensor) for value in body.values()):
        raise SlimError(
            f"checkpoint must be a state dict. Got {path} with {type(body).__name__}. Give a file of weights."
        )
    return {str(key).removeprefix("module."): value for key, value in body.items()}


def _fill(network: nn.Module, weights: dict[str, Any], path: Path) -> nn.Module:
    own = network.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing or extra or wrong:
        first = (missing or extra or sorted(wrong))[0]
        raise SlimError(
            f"checkpoint must belong to the configured model. Got {path}: {len(missing)} weights missing, "
            f"{len(extra)} unknown, {len(wrong)} of another shape, such as {first}. Set model as it was trained."
        )
    for key, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SlimError(
                f"Weights must be finite. Got NaN or infinity in {key} ({path}). Set checkpoint to an earlier one."
            )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise SlimError(
            f"checkpoint must hold plain weights. Got {str(error)[:160]} ({path}). Set checkpoint to another file."
        ) from None
    return network
