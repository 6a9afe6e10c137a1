"""Image classifiers of Hugging Face's transformers by name; an extra, ``slim-channels[transformers]``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slim.data.downloads import socket_timeout
from slim.errors import SlimError, nearest
from slim.models.checks import integer
from slim.models.initialization import init_gamma
from slim.models.preprocessing import set_preprocessing

_SMALL: dict[str, dict[str, Any]] = {
    "convnext": {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 128, 256]},
    "mobilenet_v2": {"depth_multiplier": 0.5},
    "regnet": {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 2, 2, 1], "groups_width": 16},
    "resnet": {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "segformer": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]},
    "swin": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
    "vit": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256},
}
"""Configurations of a size that trains on two cores, by transformers' ``model_type``."""

_PATCHES = {"vit": 8}  # per side of the image, for networks that are not pretrained


class Logits(nn.Module):
    """A model of transformers as a function from images to logits.

    Args:
        model: Gives an output with ``logits`` for ``pixel_values``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def transformers_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    gamma_init: float | None = None,
    **options: Any,
) -> nn.Module:
    """An image classifier of transformers with a head for ``num_classes``, without the output's wrapping.

    Args:
        name: A name or folder on the hub (``microsoft/resnet-18``), or a model type (``resnet``, ``vit``, ...), which
            has no weights and, where this package knows one, a small configuration.
        num_classes: Classes. A pretrained head of another size starts fresh.
        in_channels: Channels of the images; pretrained weights want their own.
        image_size: Height and width of the images, for networks that need to know.
        pretrained: Load the weights of ``name`` (downloaded once). What they were trained on is in
            :func:`~slim.models.preprocessing`.
        gamma_init: Start of every BatchNorm scale of a network that is not pretrained; None leaves the library's.
        options: Fields of the configuration, such as ``hidden_sizes``.

    Raises:
        SlimError: transformers is not installed, has no such model, or it cannot be downloaded or built.
    """
    transformers = _transformers()
    integer("num_classes", num_classes, "num_classes")
    integer("in_channels", in_channels, "in_channels")
    known = list(transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    if "/" not in name and not pretrained and name not in known:
        raise SlimError(
            f"model.name must be an image classifier of transformers or a name on its hub. Got name={name!r}. "
            f"{nearest(name, known)}"
        )
    try:
        with socket_timeout():
            if pretrained:
                return _pretrained(transformers, name, num_classes, options)
            config = _config(transformers, name, known, image_size, options)
            config.num_labels, config.num_channels = num_classes, in_channels
            model = Logits(transformers.AutoModelForImageClassification.from_config(config))
    except SlimError:
        raise
    except Exception as error:
        # The hub's errors are many (offline, no such file, a connection that ends), and so are those of odd fields.
        hint = "Set model.pretrained=false and model.name=resnet." if "/" in name else "Change model.*."
        raise SlimError(f"transformers could not build {name}. Got {type(error).__name__}: {error}. {hint}") from error
    init_gamma(model, gamma_init)
    return model


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SlimError(
            f"model=transformers needs transformers. Got {error}. Run pip install 'slim-channels[transformers]'."
        ) from error
    return transformers


def _config(transformers: Any, name: str, known: list[str], image_size: int | None, options: dict[str, Any]) -> Any:
    if name not in known:
        return transformers.AutoConfig.from_pretrained(name, **options)
    fields = dict(_SMALL.get(name, {}))
    if image_size is not None:
        fields["image_size"] = image_size
        if name in _PATCHES:
            fields["patch_size"] = max(1, image_size // _PATCHES[name])
    own = transformers.AutoConfig.for_model(name)
    for key in options:
        if not hasattr(own, key):  # it would be kept, and read by nobody
            raise SlimError(
                f"model.{key} must be a field of {type(own).__name__}. Got {key}={options[key]!r}. "
                f"{nearest(key, own.to_dict())}"
            )
    return transformers.AutoConfig.for_model(name, **{**fields, **options})


def _pretrained(transformers: Any, name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    inner = transformers.AutoModelForImageClassification.from_pretrained(
        name, num_labels=num_classes, ignore_mismatched_sizes=True, **options
    )
    model = Logits(inner)
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    size = processor.size.get("height", processor.size.get("shortest_edge")) if processor.size else None
    set_preprocessing(model, processor.image_mean, processor.image_std, size)
    return model
