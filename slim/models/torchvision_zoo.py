"""Every classifier of torchvision by name, adapted to the classes, channels and size of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slim.data.downloads import socket_timeout
from slim.errors import SlimError, nearest
from slim.models.checks import integer
from slim.models.initialization import init_gamma
from slim.models.preprocessing import set_preprocessing


def torchvision_names() -> list[str]:
    """Names of all classifiers of the installed torchvision."""
    from torchvision import models

    return list(models.list_models(module=models))


def torchvision_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    pretrained: bool | str = False,
    image_size: int | None = None,
    gamma_init: float | None = 0.5,
    **options: Any,
) -> nn.Module:
    """A torchvision classifier with a head for ``num_classes`` and a stem for ``in_channels``.

    Args:
        name: One of :func:`torchvision_names`, such as ``resnet50``.
        num_classes: Classes. A pretrained head of another size is replaced by a fresh one.
        in_channels: Channels of the images. Other than 3 replaces the first convolution; pretrained weights are
            averaged over the colours and repeated, so that a grey image gives what it gave in colour.
        pretrained: True for torchvision's default weights (downloaded once), or their name, ``IMAGENET1K_V1``.
        image_size: Height and width of the images; needed by networks with a fixed size (vit, maxvit).
        gamma_init: Initial value of every BatchNorm scale. Pretrained scales are kept.
        options: Further arguments of torchvision's builder, such as ``dropout``.

    Auxiliary heads (googlenet, inception_v3) are left out: one image, one row of logits.

    Raises:
        SlimError: unknown name or option, unknown weights, weights that cannot be downloaded, an impossible size.
    """
    from torchvision import models

    names = torchvision_names()
    if name not in names:
        raise SlimError(f"model.name must be a classifier of torchvision. Got name={name!r}. {nearest(name, names)}")
    integer("num_classes", num_classes, "num_classes")
    integer("in_channels", in_channels, "in_channels")
    builder = models.get_model_builder(name)
    weights = named_weights(name, pretrained)
    arguments = {**_defaults(name, image_size, trained=weights is not None), **options}
    if weights is None:
        arguments["num_classes"] = num_classes
    try:
        with socket_timeout():
            model: nn.Module = builder(weights=weights, **arguments)
    except (ValueError, TypeError, RuntimeError, OSError, AssertionError) as error:
        raise build_error(error, name, weights, arguments) from error
    if weights is None:
        init_gamma(model, gamma_init)
    else:
        _adapt_pretrained(model, weights, num_classes)
    if in_channels != 3:
        replace_stem(model, in_channels, keep=weights is not None)
    return model


def _adapt_pretrained(model: nn.Module, weights: Any, num_classes: int) -> None:
    """Give trained weights a head for ``num_classes``, and record how the images that they saw were preprocessed."""
    if getattr(model, "aux_logits", False):
        model.aux_logits, model.AuxLogits = False, None  # type: ignore[assignment]  # inception_v3
    if num_classes != len(weights.meta["categories"]):
        _replace_head(model, len(weights.meta["categories"]), num_classes)
    trained_on = weights.transforms()
    set_preprocessing(model, trained_on.mean, trained_on.std, trained_on.crop_size[0])


def _defaults(name: str, image_size: int | None, *, trained: bool) -> dict[str, Any]:
    """Arguments that some of torchvision's builders need; ``trained`` networks keep their own size and transform."""
    arguments: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3") and not trained:
        # The input transform indexes three colours.
        arguments |= {"aux_logits": False, "init_weights": True, "transform_input": False}
    if not trained and image_size is not None:
        if name.startswith("vit_"):
            arguments["image_size"] = image_size
        if name == "maxvit_t":
            arguments["input_size"] = (image_size, image_size)
    return arguments


def named_weights(name: str, pretrained: bool | str) -> Any:
    """Weights of torchvision by name; None for none.

    Raises:
        SlimError: there are none of that name.
    """
    if pretrained is False or pretrained is None:
        return None
    from torchvision import models

    known = models.get_model_weights(name)
    if pretrained is True:
        # DEFAULT is an alias and would hide which weights these are.
        return known["DEFAULT"]
    if pretrained not in known.__members__:
        raise SlimError(
            f"pretrained must be true, false or the name of weights of {name}. Got pretrained={pretrained!r}. "
            f"{nearest(str(pretrained), known.__members__)} Set model.pretrained."
        )
    return known[pretrained]


def build_error(error: Exception, name: str, weights: Any, arguments: dict[str, Any]) -> SlimError:
    """One line for what a builder of torchvision raised."""
    if weights is not None and isinstance(error, OSError):
        folder = f"{torch.hub.get_dir()}/checkpoints"
        file = str(weights.url).rsplit("/", 1)[-1]
        return SlimError(
            f"pretrained weights must be on disk or downloadable. Got {type(error).__name__}: {error} ({weights.url}). "
            f"Put {file} into {folder}, or set model.pretrained=false."
        )
    if isinstance(error, OSError):
        return SlimError(
            f"pretrained weights must be on disk or downloadable. Got {type(error).__name__}: {error} ({name}, "
            "backbone). Set model.pretrained=false."
        )
    if weights is not None and isinstance(error, RuntimeError) and "hash" in str(error):
        return SlimError(f"pretrained weights must have their checksum. Got {error}. Delete the file and try again.")
    return SlimError(
        f"torchvision could not build {name}. Got {error} (arguments {arguments}). Change model.* or data.image_size."
    )


def named_network(
    name: str, num_classes: int, pretrained: bool | str, options: dict[str, Any], *, backbone: str = "DEFAULT"
) -> tuple[nn.Module, Any]:
    """A detector or segmentation network of torchvision, and the weights that it was given, ``None`` without.

    Args:
        name: As torchvision's builder is called.
        num_classes: Layers whose shape depends on another number of classes start fresh.
        pretrained: True for the default weights, their name, or ``backbone`` for those of the backbone alone.
        options: Further arguments of the builder.
        backbone: Which weights ``pretrained="backbone"`` means.

    Raises:
        SlimError: It has no such weights, they cannot be downloaded, or the builder refuses its arguments.
    """
    from torchvision import models

    of_backbone = backbone if pretrained == "backbone" else None
    arguments = {"weights": None, "weights_backbone": of_backbone, "num_classes": num_classes, **options}
    weights = None if pretrained == "backbone" else named_weights(name, pretrained)
    try:
        with socket_timeout():
            model: nn.Module = models.get_model_builder(name)(**arguments)
            if weights is not None:
                _load_matching(model, weights)
    except (ValueError, TypeError, RuntimeError, OSError, AssertionError) as error:
        raise build_error(error, name, weights, arguments) from error
    return model, weights


def _replace_head(model: nn.Module, before: int, after: int) -> None:
    """Replace the last layer with ``before`` outputs by a new one with ``after``."""
    for path, layer in reversed(list(model.named_modules())):
        fresh: nn.Module
        if isinstance(layer, nn.Linear) and layer.out_features == before:
            fresh = nn.Linear(layer.in_features, after, bias=layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == before:
            # Squeezenet's head is a 1x1 convolution.
            fresh = nn.Conv2d(layer.in_channels, after, 1)
        else:
            continue
        set_module(model, path, fresh)
        return
    raise SlimError(
        f"a pretrained network needs a last layer of {before} classes. Got none. Set model.pretrained=false."
    )


def replace_stem(model: nn.Module, in_channels: int, keep: bool) -> None:
    """Replace the first convolution by one that reads ``in_channels``."""
    for path, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        fresh = nn.Conv2d(
            in_channels,
            layer.out_channels,
            kernel_size=layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            bias=layer.bias is not None,
        )
        with torch.no_grad():
            if keep:
                fresh.weight.copy_(layer.weight.sum(1, keepdim=True).expand_as(fresh.weight) / in_channels)
                if fresh.bias is not None and layer.bias is not None:
                    fresh.bias.copy_(layer.bias)
            else:
                nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
                if fresh.bias is not None:
                    nn.init.zeros_(fresh.bias)
        set_module(model, path, fresh)
        if hasattr(model, "transform_input"):
            model.transform_input = False  # type: ignore[assignment]
        return
    raise SlimError(f"the network has no convolution to read {in_channels} channels. Set data.in_channels=3.")


def _load_matching(model: nn.Module, weights: Any) -> None:
    """Load ``weights`` of torchvision into ``model``, except where another number of classes gives another shape."""
    own = model.state_dict()
    found = weights.get_state_dict(progress=False, check_hash=True)
    model.load_state_dict({k: v for k, v in found.items() if k in own and own[k].shape == v.shape}, strict=False)


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` in the place ``path`` of ``model``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
