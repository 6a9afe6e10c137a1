"""From a name to a network: the families of this package, or any importable class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from slim.errors import SlimError, nearest
from slim.models.densenets import densenet
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

# What the data know about a network, and the other names that libraries use for it.
OFFERED = {
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
        num_classes: Classes of the data; handed on if the target takes it (also as ``n_classes`` or ``num_labels``).
        in_channels: Channels of the images; likewise (``in_chans``, ``num_channels``).
        image_size: Height and width of the images; likewise (``img_size``), but only if the target names it.
        options: Further arguments of the target; they win over what the data say.

    >>> type(build("slim.models.vgg", num_classes=10, depth=11)).__name__
    'VGG'

    Raises:
        SlimError: unknown name, a path that cannot be imported, arguments the target does not take, another result.
    """
    builder = FAMILIES.get(target) or _imported(target)
    parameters = _parameters(builder)
    arguments = _arguments(parameters, target, options)
    offers = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for key, value in offers.items():
        if parameters is None:
            break
        taken = next((name for name in OFFERED[key] if name in parameters), None)
        if taken is None and _takes_anything(parameters) and key != "image_size":
            # timm's factory hands everything on to the network, under timm's names.
            taken = "in_chans" if key == "in_channels" and builder.__module__.startswith("timm") else key
        if taken is not None and value is not None:
            arguments.setdefault(taken, value)
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


def check(model: nn.Module, num_classes: int, in_channels: int, image_size: int) -> None:
    """Run ``model`` on two images without arithmetic (meta tensors) and look at the shape of the result.

    The model is not changed: its tensors are replaced by meta copies for this one call.

    Raises:
        SlimError: the network cannot read such images, or gives something other than logits (N, num_classes).
    """
    state = {
        key: value.to("meta")
        for key, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
    }
    modes = [(module, module.training) for module in model.modules()]
    shape = f"{in_channels}x{image_size}x{image_size}"
    try:
        model.eval()
        with torch.no_grad():
            images = torch.empty(2, in_channels, image_size, image_size, device="meta")
            logits = torch.func.functional_call(model, state, (images,))
    except Exception as error:
        raise SlimError(
            f"the model must accept images of {shape}. Got {type(error).__name__}: {error}. "
            "Set data.image_size or another model."
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (2, num_classes):
        raise SlimError(
            f"the model must return one row of {num_classes} logits per image. Got {found} for 2 images of {shape}. "
            "Set another model, or its number of classes."
        )


def _imported(target: str) -> Callable[..., nn.Module]:
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise SlimError(
            f"the model must be a known family or an importable path. Got {target!r}. {nearest(target, FAMILIES)} "
            "Set model=<family> or model._target_."
        )
    found: Any = None
    for split in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:split])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise SlimError(f"model._target_ must be importable. Got {error} ({target}). Install it.") from error
        except Exception as error:
            raise SlimError(
                f"model._target_ must be importable. Got {error} ({target}). Set model._target_."
            ) from error
        break
    for part in parts[split:] if found is not None else ():
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise SlimError(
                f"model._target_ must exist. Got {target!r} without {part!r}. {nearest(part, public)} "
                "Set model._target_."
            )
        found = getattr(found, part)
    if not callable(found):
        raise SlimError(f"model._target_ must be a class or a function to call. Got {target!r}. Set model._target_.")
    return found  # type: ignore[no-any-return]


def _parameters(builder: Callable[..., nn.Module]) -> Parameters | None:
    """What ``builder`` takes; None for a built-in that does not say."""
    try:
        return inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return None


def _arguments(parameters: Parameters | None, target: str, options: dict[str, Any]) -> dict[str, Any]:
    if parameters is not None and not _takes_anything(parameters):
        for key in options:
            if key not in parameters:
                raise SlimError(
                    f"model.{key} must be an argument of {target}. Got {key}={options[key]!r}. "
                    f"{nearest(key, parameters)}"
                )
    return dict(options)


def _takes_anything(parameters: Parameters) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
