"""Every network of timm by name; an extra, ``slim-channels[timm]``."""

from __future__ import annotations

from typing import Any

from torch import nn

from slim.data.downloads import socket_timeout
from slim.errors import SlimError, nearest
from slim.models.checks import integer
from slim.models.initialization import init_gamma


def timm_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    gamma_init: float | None = None,
    **options: Any,
) -> nn.Module:
    """A classifier of timm with a head for ``num_classes`` and a stem for ``in_channels``.

    Args:
        name: As ``timm.create_model`` takes it, such as ``resnet10t``, ``convnext_atto.d2_in1k`` or ``hf-hub:...``.
        num_classes: Classes.
        in_channels: Channels of the images.
        image_size: Height and width of the images, for networks with a fixed size; others take any.
        pretrained: Load timm's weights (downloaded once). What they were trained on is in
            :func:`~slim.models.preprocessing`.
        gamma_init: Start of every BatchNorm scale of a network that is not pretrained; None leaves timm's.
        options: Further arguments of the network.

    Raises:
        SlimError: timm is not installed, has no such network or weights, or they cannot be downloaded.
    """
    timm = _timm()
    integer("num_classes", num_classes, "num_classes")
    integer("in_channels", in_channels, "in_channels")
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        raise SlimError(f"model.name must be a network of timm. Got name={name!r}. {nearest(name, timm.list_models())}")
    arguments = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": in_channels, **options}
    try:
        with socket_timeout():
            model = _sized(timm, name, arguments, image_size)
    except Exception as error:
        # The hub's errors are many (offline, no such file, a connection that ends); they all leave no weights.
        hint = "Set model.pretrained=false." if pretrained else "Change model.* or data.image_size."
        raise SlimError(f"timm could not build {name}. Got {type(error).__name__}: {error}. {hint}") from error
    if not pretrained:
        init_gamma(model, gamma_init)
    return model


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise SlimError(f"model=timm needs timm. Got {error}. Run pip install 'slim-channels[timm]'.") from error
    return timm


def _sized(timm: Any, name: str, arguments: dict[str, Any], image_size: int | None) -> nn.Module:
    if image_size is not None and "img_size" not in arguments:
        try:
            model: nn.Module = timm.create_model(name, img_size=image_size, **arguments)
            return model
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    model = timm.create_model(name, **arguments)
    return model
