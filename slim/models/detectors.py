"""Detectors: torchvision's by name, and an SSDlite on a small backbone for small images."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from slim.errors import SlimError, nearest
from slim.models.checks import integer
from slim.models.initialization import init_gamma
from slim.models.stages import WIDTHS, small_depth, stages
from slim.models.torchvision_zoo import build_error, named_network, set_module

HALVED = "ssdlite320_mobilenet_v3_large"
"""The detector whose backbone has fewer channels where it is not pretrained."""
_SMALL = ("ssdlite",)
_SCALES = (0.25, 0.4, 0.6, 0.8)  # of the boxes of an SSD on small images, per feature map, and of the one after


def detection_names() -> list[str]:
    """Names of all detectors of the installed torchvision."""
    from torchvision import models

    return list(models.list_models(module=models.detection))


def detection_model(
    name: str,
    *,
    num_classes: int = 91,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool | str = False,
    whole_tail: bool = False,
    stem_stride: int = 2,
    gamma_init: float | None = 0.5,
    **options: Any,
) -> nn.Module:
    """A detector with torchvision's interface: images and targets to losses in training, else images to boxes.

    Args:
        name: One of torchvision's, such as ``ssdlite320_mobilenet_v3_large``, ``retinanet_resnet50_fpn`` or
            ``fasterrcnn_resnet50_fpn``; or ``ssdlite_resnet<6n+2>``, an SSDlite on the ResNet for small images.
        num_classes: Classes, background included.
        in_channels: 3, as torchvision's detectors normalize colours by themselves.
        image_size: Images are scaled to this height and width. None: the detector's own.
        pretrained: True for torchvision's default weights (downloaded once) or their name; ``backbone`` for those of
            the backbone on ImageNet alone. Layers whose shape depends on another number of classes start fresh.
        whole_tail: Give the last layers of the ``ssdlite320_mobilenet_v3_large`` backbone all channels, as it has them
            with ``pretrained="backbone"``; torchvision halves them otherwise.
        stem_stride: Of the first convolution of a small ResNet.
        gamma_init: Start of every BatchNorm scale. Pretrained scales are kept.
        options: Further arguments of torchvision's builder, such as ``score_thresh``.

    Every normalization is a BatchNorm with a gamma that learns; torchvision freezes those of pretrained backbones.

    Raises:
        SlimError: unknown name or weights, weights that cannot be downloaded, arguments the builder does not take.
    """
    integer("num_classes", num_classes, "num_classes")
    if in_channels != 3:
        raise SlimError(f"a detector reads 3 channels. Got in_channels={in_channels!r}. Set data.in_channels=3.")
    if image_size is not None:
        integer("image_size", image_size, "data.image_size")
    if whole_tail and (name != HALVED or pretrained not in (False, "backbone")):
        raise SlimError(
            f"whole_tail is of an untrained {HALVED}. Got name={name!r}, pretrained={pretrained!r}. Set it to false."
        )
    depth = small_depth(name, _SMALL)
    if depth is not None:
        if pretrained:
            raise SlimError(f"{name} has no pretrained weights. Got pretrained={pretrained!r}. Set it to false.")
        model = _small(depth, num_classes, image_size or 64, stem_stride, options)
    else:
        model = _torchvision(name, num_classes, pretrained, options)
        if whole_tail and not pretrained:
            _whole_tail(model, num_classes)
    if image_size is not None:
        _scale_to(model, image_size)
    if not pretrained:
        init_gamma(model, gamma_init)
    return model


def _torchvision(name: str, num_classes: int, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    names = detection_names()
    if name not in names:
        raise SlimError(
            f"model.name must be a detector of torchvision, or ssdlite_resnet<6n+2>. Got name={name!r}. "
            f"{nearest(name, names)}"
        )
    # The images of torchvision's SSD300 come to its backbone with the scale of these weights alone.
    backbone = "IMAGENET1K_FEATURES" if name == "ssd300_vgg16" else "DEFAULT"
    model, _ = named_network(name, num_classes, pretrained, options, backbone=backbone)
    _thaw(model)
    return model


def _whole_tail(model: Any, num_classes: int) -> None:
    """Replace backbone and head by untrained ones of the shapes that they have with a pretrained backbone."""
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.detection import _utils, ssdlite

    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    model.backbone = ssdlite._mobilenet_extractor(mobilenet_v3_large(norm_layer=norm), 6, norm)
    channels = _utils.retrieve_out_channels(model.backbone, (320, 320))
    anchors = model.anchor_generator.num_anchors_per_location()
    model.head = ssdlite.SSDLiteHead(channels, anchors, num_classes, norm)


def _scale_to(model: Any, size: int) -> None:
    """Let the detector's own transform scale every image to ``size``, without noise of its own in training."""
    model.transform.min_size, model.transform.max_size = (size,), size
    model.transform.fixed_size = (size, size)


def _thaw(model: nn.Module) -> None:
    """Replace torchvision's FrozenBatchNorm2d by BatchNorm2d of the same scales and statistics, in place."""
    from torchvision.ops import FrozenBatchNorm2d

    for path, layer in list(model.named_modules()):
        if isinstance(layer, FrozenBatchNorm2d):
            fresh = nn.BatchNorm2d(len(layer.weight), eps=layer.eps)
            fresh.load_state_dict(layer.state_dict(), strict=False)
            set_module(model, path, fresh)


class _Pyramid(nn.Module):
    """Two stages of a ResNet and one more block at half the size: three feature maps."""

    def __init__(self, depth: int, stem_stride: int) -> None:
        super().__init__()
        self.body = stages(depth, 3, stem_stride, {"stage2": "0", "stage3": "1"})
        width = WIDTHS["stage3"]
        self.extra = nn.Sequential(
            *(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(inplace=True)),
            *(
                nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU6(inplace=True),
            ),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to feature maps of 1/4, 1/8 and 1/16 of their size (stem stride 2)."""
        maps: dict[str, Tensor] = self.body(x)
        return {**maps, "2": self.extra(maps["1"])}


def _small(depth: int, num_classes: int, image_size: int, stem_stride: int, options: dict[str, Any]) -> nn.Module:
    """SSDlite (Sandler et al. 2018, arXiv:1801.04381) with three feature maps and boxes of few shapes."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    boxes = DefaultBoxGenerator([[2], [2], [2]], scales=list(_SCALES))
    widths = [WIDTHS["stage2"], WIDTHS["stage3"], WIDTHS["stage3"]]
    head = SSDLiteHead(widths, boxes.num_anchors_per_location(), num_classes, partial(nn.BatchNorm2d))
    arguments: dict[str, Any] = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "score_thresh": 0.05,
        "detections_per_img": 20,
        "topk_candidates": 100,
        **options,
    }
    try:
        model: nn.Module = SSD(
            _Pyramid(depth, stem_stride), boxes, (image_size, image_size), num_classes, head=head, **arguments
        )
    except (ValueError, TypeError) as error:
        raise build_error(error, f"ssdlite_resnet{depth}", None, options) from error
    return model
