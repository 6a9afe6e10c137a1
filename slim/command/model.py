"""Which network a command is about: a name of torchvision or timm, a builder, a run directory, or an artifact."""

from __future__ import annotations

import argparse
import copy
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slim
from slim import artifact, recipe
from slim.channels import plan_of
from slim.errors import SlimError, nearest

ARTIFACT = "model.safetensors"
UNTRAINED = "its weights are untrained: sizes and times hold, what is cut says nothing"


@dataclass(frozen=True)
class Model:
    """A network that a user named.

    Attributes:
        name: As the user gave it.
        network: In eval mode, on the CPU; thin where the file is.
        example: Zeros in the shapes of its inputs, one sample; :func:`slim.trace` takes them.
        builder: How its dense network is built; see :mod:`slim.recipe`.
        thin: Whether a plan made it.
        trained: Whether its weights came from anywhere.
        metadata: What else its file says.
    """

    name: str
    network: nn.Module
    example: Any
    builder: dict[str, Any]
    thin: bool
    trained: bool
    metadata: Mapping[str, str]

    def dense(self) -> nn.Module:
        """The dense network, untrained."""
        return recipe.build(self.builder, trust=True).eval()


def arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The arguments that name networks."""
    named = "a name of torchvision or timm, package.module:builder, a run directory, or an artifact"
    parser.add_argument("model", nargs="+" if several else None, help=named)
    parser.add_argument(
        "--input", metavar="SHAPE", help="of one sample, such as 3x224x224; several: 3x32x32,10 (default: the model's)"
    )
    parser.add_argument(
        "--arg",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="argument of the builder, such as num_classes=10",
    )
    parser.add_argument("--pretrained", action="store_true", help="load torchvision's or timm's weights")
    parser.add_argument("--weights", metavar="FILE", help="load these weights: a state dict, checkpoint or artifact")
    parser.add_argument(
        "--builder", metavar="PACKAGE.MODULE:NAME", help="builds the dense network of an artifact that names none"
    )
    parser.add_argument("--trust", action="store_true", help="let artifacts name any builder: that runs their code")


def find(name: str, args: argparse.Namespace) -> Model:
    """The network called ``name``, with the options of :func:`arguments`.

    Raises:
        SlimError: There is none, its file is damaged or not trusted, or its input is not known.
    """
    options = _options(args.arg)
    path = Path(name)
    if path.is_dir():
        path = _artifact_of(path)
    metadata: Mapping[str, str] = {}
    if path.is_file():
        network, builder, metadata = _from_file(path, options, args)
    else:
        builder = _builder_of(name, options, args.pretrained)
        network = recipe.build(builder, trust=True)
    if args.weights:
        network = _with_weights(network, Path(args.weights))
    kept = None if args.input else metadata.get("input")
    example = _example(args.input or kept or _own_input(network, builder), name, whole=kept is not None)
    builder = _without_weights(builder)
    trained = path.is_file() or bool(args.weights) or args.pretrained
    return Model(name, network.eval(), example, builder, plan_of(network) is not None, trained, metadata)


# By file


def _artifact_of(directory: Path) -> Path:
    if (directory / ARTIFACT).is_file():
        return directory / ARTIFACT
    again = shlex.quote(f"resume={directory}")
    hint = f"Finish the run: slim train {again}." if (directory / "state.json").is_file() else "Check it."
    raise SlimError(f"A run directory must hold a finished run. Got {directory} without {ARTIFACT}. {hint}")


def _from_file(
    path: Path, options: dict[str, Any], args: argparse.Namespace
) -> tuple[nn.Module, dict[str, Any], Mapping[str, str]]:
    header = artifact.read_header(path)
    if args.builder:
        builder = _called(args.builder, options)
        dense = recipe.build(builder, trust=True)
    else:
        dense = artifact.dense(path, header, trust=args.trust)
        builder = dict(header.builder or {})
    return artifact.load(path, dense), builder, header.metadata


def _with_weights(network: nn.Module, path: Path) -> nn.Module:
    from slim.runs import weights

    if not path.is_file():
        raise SlimError(f"Weights must be a file. Got --weights {path}. Check the path.")
    plan, found = weights.read(path)
    network = slim.rebuild(network, plan) if plan is not None else copy.copy(network)
    weights.fill(network, network, found, path)
    return network


# By name


def _builder_of(name: str, options: dict[str, Any], pretrained: bool) -> dict[str, Any]:
    """How the network is built that a user calls ``name``, which is no file."""
    if re.search(r"[/\\]|\.(safetensors|ckpt|pth?)$", name) and ":" not in name:
        raise SlimError(f"A model must exist. Got {name}. Give a run directory, an artifact, or a name.")
    if ":" in name:
        return _called(name, options | ({"pretrained": True} if pretrained else {}))
    from slim.models import torchvision_names

    known = torchvision_names()
    if name in known:
        made = {recipe.TARGET: "slim.models.torchvision_model", "name": name, "num_classes": 1000, "gamma_init": None}
    elif _in_timm(name):
        made = {recipe.TARGET: "slim.models.timm_model", "name": name, "num_classes": 1000}
    else:
        raise SlimError(
            f"A model must be known. Got {name}. {nearest(name, known)} Give a name of torchvision or timm "
            "(pip install 'slim-channels[timm]'), package.module:builder, a run directory or an artifact."
        )
    return made | ({"pretrained": True} if pretrained else {}) | options


def _in_timm(name: str) -> bool:
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name))


def _called(text: str, options: dict[str, Any]) -> dict[str, Any]:
    module, _, name = text.partition(":")
    if not name or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise SlimError(f"A builder must read package.module:name. Got {text}. Such as slim.models:resnet.")
    return {recipe.TARGET: f"{module}.{name}", **options}


def _options(items: list[str]) -> dict[str, Any]:
    """Arguments of the builder, their values read as those of the configuration: numbers, lists, texts."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for item in items:
        key, sign, _ = item.partition("=")
        if not sign or not key.isidentifier():
            raise SlimError(f"An argument of a builder must read key=value. Got --arg {item}. Such as num_classes=10.")
    try:
        found: Any = OmegaConf.to_container(OmegaConf.from_dotlist(items), resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise SlimError(
            f"An argument of a builder must read key=value. Got --arg {items} ({error}). Mend it."
        ) from None
    return dict(found)


def _without_weights(builder: dict[str, Any]) -> dict[str, Any]:
    """The same architecture, to be filled with weights: nothing is downloaded when an artifact is loaded."""
    target = str(builder[recipe.TARGET])
    if not target.startswith("slim.models.") or not builder.get("pretrained"):
        return builder
    from slim import models

    rest = {key: value for key, value in builder.items() if key not in (recipe.TARGET, "num_classes", "in_channels")}
    return models.recipe(target, builder.get("num_classes", 10), builder.get("in_channels", 3), **rest)


# Its input


def _own_input(network: nn.Module, builder: Mapping[str, Any]) -> str | None:
    """The shape that a network's own configuration names."""
    from slim.models import preprocessing

    size = builder.get("image_size") or preprocessing(network).get("image_size")
    if size is None and builder[recipe.TARGET] == "slim.models.torchvision_model":
        from torchvision import models

        known = models.get_model_weights(str(builder["name"]))
        size = known["DEFAULT"].transforms().crop_size[0] if len(known) else 224
    return None if size is None else f"{builder.get('in_channels', 3)}x{size}x{size}"


def _example(text: str | None, name: str, *, whole: bool) -> Any:
    """Zeros of the shapes in ``3x32x32`` or ``1x3x32x32,10``; four numbers or more with a leading 1 hold the batch.

    So do fewer in ``whole`` shapes, which an artifact keeps: ``1x3x32x32, 1x10``.
    """
    if text is None:
        raise SlimError(f"The input of a model must be known. Got no shape for {name}. Give --input 3x224x224.")
    shapes = text.replace(" ", "").split(",")
    if not all(re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) for shape in shapes):
        raise SlimError(f"An input must read as its shape. Got --input {text}. Such as 3x224x224.")
    tensors = []
    for shape in shapes:
        sizes = [int(size) for size in shape.split("x")]
        batched = sizes[0] == 1 and (whole or len(sizes) > 3)
        tensors.append(torch.zeros(sizes if batched else [1, *sizes]))
    return tensors[0] if len(tensors) == 1 else tuple(tensors)
