"""The weights of a module in a file: written after every phase, read from whatever a user calls a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slim.artifact import classes_in, is_artifact, normalization_in, read_header, write
from slim.artifact import read as read_artifact
from slim.channels import Plan, plan_of
from slim.errors import SlimError
from slim.files import read_torch
from slim.runs.components import Components
from slim.runs.state import State

NETWORK = "network.safetensors"
"""What every finished phase leaves in its folder: the weights, and the plan that the network was thinned by."""


def save(path: Path, module: pl.LightningModule, network: nn.Module) -> None:
    """Write the weights of ``network``, or of the whole ``module`` where it has others, atomically, with the plan."""
    inside = {value.data_ptr() for value in network.state_dict().values()}
    alone = all(value.data_ptr() in inside for value in module.state_dict().values())
    write(path, network if alone else module, plan_of(network))


def load(parts: Components, path: Path, kind: str | None = None) -> pl.LightningModule:
    """The module of the configuration with the weights in ``path``, its network as thin as they are.

    Args:
        parts: Builds the module.
        path: ``*.safetensors`` of :func:`save`, :func:`slim.save` or anybody; a Lightning checkpoint ``*.ckpt``; a run
            directory (its last network); or a state dict saved by ``torch.save`` (loaded with ``weights_only``).
        kind: The phase that the module is for; ``None`` to evaluate only.

    Raises:
        SlimError: Missing, damaged or hostile file, or one of another architecture.
    """
    if path.is_dir():
        path = _last_of(path)
    if not path.is_file():
        raise SlimError(f"checkpoint must be a file or a run directory. Got checkpoint={path}. Check the path.")
    plan, weights = read(path)
    _check_channels(parts, plan)
    module = parts.module(kind)
    if plan is not None:
        try:
            parts.thin(module, plan)
        except SlimError as error:
            found = str(error).partition("Got ")[2].partition(". ")[0]
            raise SlimError(
                f"checkpoint must hold a network of the configured model. Got {path}, whose plan does not fit: "
                f"{found}. Set model as it was trained."
            ) from error
    fill(module, parts.network(module), weights, path)
    return module


def _check_channels(parts: Components, plan: Plan | None) -> None:
    """Check that the images have as many channels as those of the network, where its plan and the data say so."""
    inputs, channels = plan.inputs if plan is not None else None, getattr(parts.data, "in_channels", None)
    shape: list[int] = inputs.get("shape", []) if isinstance(inputs, Mapping) else []
    if channels is not None and len(shape) == 4 and shape[1] != channels:
        raise SlimError(
            f"Images must have the channels that the network was trained on. Got data.in_channels={channels} and a "
            f"network of {shape[1]}. Set data.in_channels={shape[1]}."
        )


def normalize_as(data: Any, path: Path) -> None:
    """Let ``data`` normalize images as they were when the network in ``path`` was trained, where its artifact says."""
    if hasattr(data, "normalize_as") and (told := normalization_in(_metadata(path))):
        data.normalize_as(**told)


def other_classes(data: Any, path: Path) -> str | None:
    """A line about a class that has another name in ``data`` than in the artifact in ``path``, where both name them.

    Labels are numbers: what is a cat to the network may be a dog in the data.

    Raises:
        SlimError: The same classes in another order.
    """
    trained, given = classes_in(_metadata(path)), [str(name) for name in getattr(data, "class_names", ())]
    if not trained or not given or trained == given:
        return None
    if sorted(trained) == sorted(given):
        raise SlimError(
            f"Classes must be in the order of training. Got {', '.join(given[:5])} in the data and "
            f"{', '.join(trained[:5])} in {path}. Set the data of the training."
        )
    pairs = zip_longest(trained, given, fillvalue="none")
    number, (mine, other) = next((at, pair) for at, pair in enumerate(pairs) if pair[0] != pair[1])
    line = "classes are compared by number, and their names differ"
    return f"{line}: {number} is {mine} in {path.name}, {other} in the data"


def _metadata(path: Path) -> Mapping[str, str]:
    """The metadata of an artifact, or of that of a run directory; empty for anybody's files."""
    path = path / "model.safetensors" if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.is_file() or not is_artifact(path):
        return {}
    return read_header(path).metadata


def read(path: Path) -> tuple[Plan | None, Mapping[str, Tensor]]:
    """The weights in a file, and the plan that their network was thinned by."""
    if path.suffix == ".safetensors":
        if not is_artifact(path):
            return None, load_file(path)
        header, tensors = read_artifact(path)
        return header.plan, tensors
    body = read_torch(path, what="checkpoint")
    return _plan_in(body), _state_dict(body, path)


def _plan_in(body: Any) -> Plan | None:
    """The plan that a checkpoint carries: one of a run, or one of the callbacks in anybody's Trainer."""
    if not isinstance(body, dict):
        return None
    if isinstance(body.get("run"), dict):
        text = body["run"].get("plan")
        return None if text is None else Plan.from_json(text)
    carried = body.get("slim")
    texts = list(carried.get("networks", {}).values()) if isinstance(carried, dict) else []
    if len(texts) > 1:
        raise SlimError(f"checkpoint must hold one thin network. Got {len(texts)} plans. Give a file with one network.")
    return Plan.from_json(texts[0]) if texts else None


def _state_dict(body: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(body, dict) and isinstance(body.get(key), dict):
            body = body[key]
    if not isinstance(body, dict) or not all(isinstance(value, Tensor) for value in body.values()):
        raise SlimError(
            f"checkpoint must be a state dict. Got {path} with {type(body).__name__}. Give a file of weights."
        )
    return {str(key).removeprefix("module."): value for key, value in body.items()}


def _last_of(directory: Path) -> Path:
    """The latest network of a run: what its last finished phase left, or the artifact alone."""
    artifact = directory / "model.safetensors"
    if artifact.is_file():
        return artifact
    # Times of files say nothing where a run was copied.
    phases = State.load(directory).phases if (directory / "state.json").is_file() else {}
    for phase in reversed(phases):
        if (path := directory / phase / NETWORK).is_file():  # an export has none
            return path
    raise SlimError(
        f"checkpoint must hold a network. Got checkpoint={directory} without a finished phase. Check the path."
    )


def _inside(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """The weights of the one part of another wrapper that has all names in ``own``; losses may be beside it."""
    first = next(iter(own), "")
    places = [key.removesuffix(first) for key in weights if key.endswith(f".{first}")]
    places = [place for place in places if all(f"{place}{name}" in weights for name in own)]
    if len(places) > 1:
        raise SlimError(
            f"checkpoint must hold one network of the configured model. Got {len(places)}, under "
            f"{', '.join(places)} ({path}). Save the state dict of the one that you mean."
        )
    place = places[0] if places else f"{next(iter(weights), '').partition('.')[0]}."
    return {key.removeprefix(place): value for key, value in weights.items() if key.startswith(place)}


def fill(module: nn.Module, network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load ``weights`` into the module, or into its network where they name the network's parameters alone."""
    whole = module.state_dict()
    receiver: nn.Module = module if len(whole.keys() & weights.keys()) > 0 or not weights else network
    own = receiver.state_dict()
    if receiver is network and not own.keys() & weights.keys():
        weights = _inside(weights, own, path)
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing or extra or wrong:
        first = (missing or extra or sorted(wrong))[0]
        raise SlimError(
            f"checkpoint must hold a network of the configured model. Got {path}: {len(missing)} weights missing, "
            f"{len(extra)} unknown, {len(wrong)} of another shape, such as {first}. Set model as it was trained."
        )
    for key, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SlimError(
                f"Weights must be finite. Got NaN or infinity in {key} ({path}). Set checkpoint to an earlier one."
            )
    try:
        own.update(weights)  # it knows the versions of its layers, which not every file holds
        receiver.load_state_dict(own)
    except RuntimeError as error:
        raise SlimError(
            f"checkpoint must hold plain weights. Got {str(error)[:160]} ({path}). Set checkpoint to another file."
        ) from None
