"""Networks with one row of logits per pixel: torchvision's by name, and their heads on a small backbone."""

from __future__ import annotations

from typing import Any

from torch import nn

from slim.errors import SlimError, nearest
from slim.models.checks import integer
from slim.models.initialization import init_gamma
from slim.models.preprocessing import set_preprocessing
from slim.models.stages import WIDTHS, small_depth, stages
from slim.models.torchvision_zoo import named_network, replace_stem

_SMALL = ("fcn", "deeplabv3", "lraspp")


def segmentation_names() -> list[str]:
    """Names of all segmentation networks of the installed torchvision."""
    from torchvision import models

    return list(models.list_models(module=models.segmentation))


def segmentation_model(
    name: str,
    *,
    num_classes: int = 21,
    in_channels: int = 3,
    pretrained: bool | str = False,
    aux_loss: bool = False,
    stem_stride: int = 2,
    gamma_init: float | None = 0.5,
    **options: Any,
) -> nn.Module:
    """A network from images (N, C, H, W) to ``{"out": logits (N, classes, H, W)}``.

    Args:
        name: One of torchvision's, such as ``fcn_resnet50``, ``deeplabv3_mobilenet_v3_large`` or
            ``lraspp_mobilenet_v3_large``; or ``fcn``, ``deeplabv3`` or ``lraspp`` on the ResNet of 6n+2 layers for
            small images, such as ``lraspp_resnet20``.
        num_classes: Classes, background included.
        in_channels: Channels of the images; see :func:`~slim.models.torchvision_model`.
        pretrained: True for torchvision's default weights (downloaded once) or their name; ``backbone`` for those of
            the backbone on ImageNet alone. Layers whose shape depends on another number of classes start fresh.
        aux_loss: Add an auxiliary classifier, whose logits are under ``aux`` (fcn and deeplabv3 of torchvision).
        stem_stride: Of the first convolution of a small ResNet.
        gamma_init: Start of every BatchNorm scale. Pretrained scales are kept.
        options: Further arguments of torchvision's builder.

    Raises:
        SlimError: unknown name or weights, weights that cannot be downloaded, arguments the builder does not take.
    """
    integer("num_classes", num_classes, "num_classes")
    integer("in_channels", in_channels, "in_channels")
    depth = small_depth(name, _SMALL)
    if depth is not None:
        if pretrained or aux_loss or options:
            raise SlimError(
                f"small networks are trained from nothing, with one head. Got pretrained={pretrained!r}, "
                f"aux_loss={aux_loss!r} and options {sorted(options)} (model.name={name}). Set model.name to one of "
                f"torchvision's, such as {name.partition('_')[0]}_resnet50."
            )
        model = _small(name.partition("_")[0], depth, num_classes, in_channels, stem_stride)
    else:
        model = _torchvision(name, num_classes, pretrained, {**options, **({"aux_loss": True} if aux_loss else {})})
        if in_channels != 3:
            replace_stem(model, in_channels, keep=bool(pretrained))
    if not pretrained:
        init_gamma(model, gamma_init)
    return model


def _torchvision(name: str, num_classes: int, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    names = segmentation_names()
    if name not in names:
        raise SlimError(
            f"model.name must be a segmentation network of torchvision, or one of {', '.join(_SMALL)} with "
            f"_resnet<6n+2>. Got name={name!r}. {nearest(name, names)}"
        )
    model, weights = named_network(name, num_classes, pretrained, options)
    if weights is not None:
        trained_on = weights.transforms()
        set_preprocessing(model, trained_on.mean, trained_on.std, trained_on.resize_size[0])
    return model


def _small(head: str, depth: int, num_classes: int, in_channels: int, stem_stride: int) -> nn.Module:
    from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.models.segmentation.fcn import FCNHead

    width = WIDTHS["stage3"]
    if head == "lraspp":
        trunk = stages(depth, in_channels, stem_stride, {"stage1": "low", "stage3": "high"})
        model: nn.Module = LRASPP(trunk, WIDTHS["stage1"], width, num_classes, inter_channels=width)
    else:
        trunk = stages(depth, in_channels, stem_stride, {"stage3": "out"})
        kind, layers = (FCN, FCNHead) if head == "fcn" else (DeepLabV3, DeepLabHead)
        model = kind(trunk, layers(width, num_classes))
    return model
