"""Build a network by name: the families of this package, or any importable class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from slim.errors import SlimError, expect_booleans, nearest
from slim.importing import callable_at
from slim.models.densenets import densenet
from slim.models.detectors import HALVED
from slim.models.mlps import mlp
from slim.models.preresnets import preresnet
from slim.models.resnets import resnet
from slim.models.torchvision_zoo import torchvision_model
from slim.models.vggs import vgg

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vgg": vgg,
    "resnet": resnet,
    "preresnet": preresnet,
    "densenet": densenet,
    "mlp": mlp,
    "torchvision": torchvision_model,
}

Parameters = Mapping[str, inspect.Parameter]

# Arguments given by the data, and the names that libraries use for them.
ARGUMENT_NAMES = {
    "num_classes": ("num_classes", "n_classes", "num_labels"),
    "in_channels": ("in_channels", "in_chans", "num_channels", "in_chan"),
    "image_size": ("image_size", "img_size"),
}


def build(
    target: str,
    num_classes: int,
    in_channels: int = 3,
    *,
    image_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by family name or by dotted path.

    Args:
        target: ``vgg``, ``resnet``, ``preresnet``, ``densenet``, ``mlp``, ``torchvision``, or the path of any
            importable class or function that returns an ``nn.Module``, such as ``timm.create_model``.
        num_classes: Classes of the data; passed on if the target takes it (also as ``n_classes`` or ``num_labels``).
        in_channels: Channels of the images; likewise (``in_chans``, ``num_channels``).
        image_size: Height and width of the images; likewise (``img_size``), but only if the target names it.
        options: Further arguments of the target; they take precedence over the values of the data.

    >>> type(build("slim.models.vgg", num_classes=10, depth=11)).__name__
    'VGG'

    Raises:
        SlimError: unknown name, a path that cannot be imported, arguments the target does not take, another result.
    """
    builder, arguments = _arguments(target, num_classes, in_channels, image_size, options)
    try:
        model = builder(**arguments)
    except SlimError:
        raise
    except Exception as error:
        raise SlimError(
            f"model._target_ must build with its arguments. Got {type(error).__name__}: {error} ({target}). "
            "Change model.*."
        ) from error
    if not isinstance(model, nn.Module):
        raise SlimError(
            f"model._target_ must give a torch.nn.Module. Got {type(model).__name__} ({target}). Set model._target_."
        )
    return model


def recipe(
    target: str, num_classes: int, in_channels: int = 3, *, image_size: int | None = None, **options: Any
) -> dict[str, Any]:
    """What :func:`build` calls, as plain data: ``_target_`` and arguments. Pretrained weights are left out.

    A network of the same shapes, untrained, into which the weights of the trained one load.

    >>> recipe("vgg", 10, depth=11)
    {'_target_': 'slim.models.vgg', 'num_classes': 10, 'in_channels': 3, 'depth': 11}
    """
    builder, arguments = _arguments(target, num_classes, in_channels, image_size, options)
    path = f"slim.models.{builder.__name__}" if target in FAMILIES else target
    if path.startswith("slim.models.") and arguments.get("pretrained"):
        if arguments.get("name") == HALVED and arguments["pretrained"] == "backbone":
            arguments["whole_tail"] = True
        arguments["pretrained"] = False
        if arguments.get("name") in ("googlenet", "inception_v3"):
            arguments["transform_input"] = in_channels == 3  # torchvision's, with weights
    return {"_target_": path, **arguments}


def check(model: nn.Module, num_classes: int, in_channels: int, image_size: int) -> None:
    """Run ``model`` on two images without arithmetic (meta tensors) and check the shape of the result.

    The model is not changed: its tensors are replaced by meta copies for this one call.

    Raises:
        SlimError: the network cannot read such images, or gives something other than logits (N, num_classes).
    """
    state = {
        key: value.to("meta")
        for key, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
    }
    shape = f"{in_channels}x{image_size}x{image_size}"
    images = torch.empty(2, in_channels, image_size, image_size, device="meta")
    logits = _answer(model, shape, lambda: torch.func.functional_call(model, state, (images,)))
    result = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if result != (2, num_classes):
        raise SlimError(
            f"the model must return one row of {num_classes} logits per image. Got {result} for 2 images of {shape}. "
            "Set another model, or its number of classes."
        )


def check_pixels(model: nn.Module, num_classes: int, in_channels: int, image_size: int) -> None:
    """Run ``model`` in eval mode on one image of zeros and check the shape of the result.

    Raises:
        SlimError: the network cannot read such images, or gives something other than logits (1, num_classes or more,
            image_size, image_size), by themselves or under ``out``.
    """
    image = next(model.parameters(), torch.empty(0)).new_zeros(1, in_channels, image_size, image_size)
    shape = f"{in_channels}x{image_size}x{image_size}"
    found = _answer(model, shape, lambda: model(image))
    logits = found.get("out") if isinstance(found, Mapping) else found
    result = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if not isinstance(result, tuple) or len(result) != 4 or result[1] < num_classes or result[2:] != (image_size,) * 2:
        raise SlimError(
            f"the model must return {num_classes} logits per pixel. Got {result} for an image of {shape}. "
            "Set another model, or its number of classes."
        )


def _answer(model: nn.Module, shape: str, call: Callable[[], Any]) -> Any:
    """What ``call`` gets from ``model`` in eval mode, without gradients; the modes of its modules stay.

    Raises:
        SlimError: the model cannot read images of ``shape``.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            return call()
    except Exception as error:
        raise SlimError(
            f"the model must accept images of {shape}. Got {type(error).__name__}: {error}. "
            "Set data.image_size or another model."
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode


def _arguments(
    target: str, num_classes: int, in_channels: int, image_size: int | None, options: dict[str, Any]
) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The builder, and what it is called with."""
    builder = FAMILIES.get(target) or _import_target(target)
    parameters = _parameters(builder)
    _check_options(parameters, target, options)
    if parameters is not None:
        expect_booleans(builder, options, "model")
    values = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return builder, {**_data_arguments(builder, parameters, values), **options}


def _data_arguments(
    builder: Callable[..., nn.Module], parameters: Parameters | None, values: Mapping[str, int | None]
) -> dict[str, Any]:
    """``values`` under the argument names of ``builder``; those that it does not take are left out."""
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if parameters is None or value is None:
            continue
        name = next((name for name in ARGUMENT_NAMES[key] if name in parameters), None)
        if name is None and _takes_anything(parameters) and key != "image_size":
            # timm's factory passes everything on to the network, under timm's names.
            name = "in_chans" if key == "in_channels" and builder.__module__.startswith("timm") else key
        if name is not None:
            arguments[name] = value
    return arguments


def _import_target(target: str) -> Callable[..., nn.Module]:
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise SlimError(
            f"the model must be a known family or an importable path. Got {target!r}. {nearest(target, FAMILIES)} "
            "Set model=<family> or model._target_."
        )
    return callable_at(target, "model._target_")


def _parameters(builder: Callable[..., nn.Module]) -> Parameters | None:
    """The parameters of ``builder``; None for a built-in without a signature."""
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return None


def _check_options(parameters: Parameters | None, target: str, options: dict[str, Any]) -> None:
    """Raise for an option that the target does not take."""
    if parameters is not None and not _takes_anything(parameters):
        for key in options:
            if key not in parameters:
                raise SlimError(
                    f"model.{key} must be an argument of {target}. Got {key}={options[key]!r}. "
                    f"{nearest(key, parameters)}"
                )


def _takes_anything(parameters: Parameters) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
