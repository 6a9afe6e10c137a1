"""Networks: one builder per family, each a function of ``num_classes`` and ``in_channels``."""

from __future__ import annotations

from slim.models.build import build, check
from slim.models.densenets import DenseNet, densenet
from slim.models.mlps import MLP, mlp
from slim.models.preresnets import PreResNet, preresnet
from slim.models.resnets import ResNet, resnet
from slim.models.torchvision_zoo import torchvision_model, torchvision_names
from slim.models.vggs import VGG, vgg

__all__ = [
    "MLP",
    "VGG",
    "DenseNet",
    "PreResNet",
    "ResNet",
    "build",
    "check",
    "densenet",
    "mlp",
    "preresnet",
    "resnet",
    "torchvision_model",
    "torchvision_names",
    "vgg",
]
