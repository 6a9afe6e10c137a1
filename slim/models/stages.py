"""The CIFAR ResNet of this package as a backbone, for segmentation and detection on small images."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from slim.models.resnets import resnet

WIDTHS = {"stage1": 16, "stage2": 32, "stage3": 64}
"""Channels of the feature maps, by the name of the stage that gives them."""


def small_depth(name: str, heads: Any) -> int | None:
    """Depth of the small ResNet in a name such as ``lraspp_resnet20``; None for any other name.

    >>> small_depth("lraspp_resnet20", ["lraspp"]), small_depth("fcn_resnet101", ["fcn"])
    (20, None)
    """
    match = re.fullmatch(r"(\w+)_resnet(\d+)", name)
    if match is None or match[1] not in heads or int(match[2]) in (18, 34, 50, 101, 152):
        return None
    return int(match[2])


def stages(depth: int, in_channels: int, stem_stride: int, outputs: dict[str, str]) -> nn.Module:
    """A ResNet of ``6n+2`` layers from images to a dict of feature maps.

    Args:
        depth: 8, 14, 20, ...
        in_channels: Channels of the images.
        stem_stride: Of the first convolution; the stages are then ``stem_stride``, twice and four times that.
        outputs: From the stage (a key of :data:`WIDTHS`) to the key of its feature map.

    Raises:
        SlimError: another depth.
    """
    from torchvision.models._utils import IntermediateLayerGetter

    network = resnet(depth, in_channels=in_channels, gamma_init=None)
    network.conv1.stride = (stem_stride, stem_stride)
    # Leaves out what comes after the last stage that is wanted.
    getter: nn.Module = IntermediateLayerGetter(network, outputs)
    return getter
