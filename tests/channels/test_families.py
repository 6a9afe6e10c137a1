"""One small network of every torchvision family, and a few of timm's, through the whole of surgery at 50%.

`make coverage` tries the real ones, all of them. Where a family has no small member, its own classes are called with
small numbers: the structure is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig

from experiments.coverage.catalog import build, prepare
from experiments.coverage.trial import trial


def small_alexnet() -> nn.Module:
    model = models.AlexNet(num_classes=10)
    model.classifier = nn.Sequential(nn.Linear(256 * 36, 32), nn.ReLU(), nn.Linear(32, 10))
    return model


def small_vgg() -> nn.Module:
    widths = [16, "M", 32, "M", 64, "M"]
    model = models.VGG(models.vgg.make_layers(widths, batch_norm=True), num_classes=10, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 32), nn.ReLU(), nn.Linear(32, 10))
    return model


def small_efficientnet_v2() -> nn.Module:
    fused = FusedMBConvConfig(1, 3, 1, 16, 16, 1), FusedMBConvConfig(4, 3, 2, 16, 24, 2)
    return models.EfficientNet([*fused, MBConvConfig(4, 3, 2, 24, 32, 2)], dropout=0.1, last_channel=64, num_classes=10)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "alexnet": small_alexnet,
    "convnext": partial(models.ConvNeXt, [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], layer_scale=0.1),
    "densenet": partial(models.DenseNet, growth_rate=8, block_config=(3, 3, 2), num_init_features=16),
    "efficientnet": models.efficientnet_b0,
    "efficientnet_v2": small_efficientnet_v2,
    "googlenet": partial(models.googlenet, aux_logits=False, init_weights=False),
    "inception": partial(models.inception_v3, aux_logits=False, init_weights=False),
    "maxvit": partial(models.MaxVit, (64, 64), 16, 4, [16, 32], [1, 1], 8, 0.1),
    "mnasnet": models.mnasnet0_5,
    "mobilenet_v2": partial(models.mobilenet_v2, width_mult=0.5),
    "mobilenet_v3": models.mobilenet_v3_small,
    "regnet_x": models.regnet_x_400mf,
    "regnet_y": models.regnet_y_400mf,
    "resnet": models.resnet18,
    "resnet bottleneck": partial(models.ResNet, models.resnet.Bottleneck, [1, 2, 1, 1], width_per_group=32),
    "resnext": partial(models.ResNet, models.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4),
    "shufflenet": models.shufflenet_v2_x0_5,
    "squeezenet": models.squeezenet1_1,
    "swin": partial(models.SwinTransformer, [4, 4], 16, [2, 2], [2, 4], [4, 4]),
    "vgg": small_vgg,
    "vit": partial(models.VisionTransformer, 64, 16, 2, 4, 32, 64),
    "deeplab": partial(models.segmentation.deeplabv3_mobilenet_v3_large, weights_backbone=None),
    "lraspp": partial(models.segmentation.lraspp_mobilenet_v3_large, weights_backbone=None),
}
TIMM = [
    "resnet/resnet10t",
    "mobilenetv3/lcnet_035",
    "byobnet/test_byobnet",
    "convnext/test_convnext",
    "nfnet/test_nfnet",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_torchvision_family(family: str) -> None:
    """Half of the channels go, and the thin network computes what the masked one computes."""
    model = FAMILIES[family]()
    assert lawful(trial(*prepare(model, fixed=getattr(model, "image_size", None))))


def test_detection_backbone() -> None:
    """A feature pyramid: a dict of five outputs over one trunk."""
    assert lawful(trial(*build("torchvision/detection/fasterrcnn_mobilenet_v3_large_320_fpn")))


@pytest.mark.parametrize("name", TIMM)
def test_timm_family(name: str) -> None:
    pytest.importorskip("timm")
    assert lawful(trial(*build(f"timm/{name}")))


def lawful(row: dict) -> bool:
    """The law held, MACs were predicted exactly, and the cut was one that shows."""
    assert row["verdict"] == "ok", row
    assert row["macs exact"]
    assert row["change"] > 1e-6, "removing half of the network changed nothing: the comparison is empty"
    return True
