"""Networks: one builder per family, each a function of ``num_classes`` and ``in_channels``."""

from __future__ import annotations

from slim.models.build import build, check, check_pixels, recipe
from slim.models.densenets import DenseNet, densenet
from slim.models.detectors import detection_model, detection_names
from slim.models.mlps import MLP, mlp
from slim.models.preprocessing import preprocessing
from slim.models.preresnets import PreResNet, preresnet
from slim.models.resnets import ResNet, resnet
from slim.models.segmenters import segmentation_model, segmentation_names
from slim.models.timm_zoo import timm_model
from slim.models.torchvision_zoo import torchvision_model, torchvision_names
from slim.models.transformers_zoo import transformers_model
from slim.models.vggs import VGG, vgg

__all__ = [
    "MLP",
    "VGG",
    "DenseNet",
    "PreResNet",
    "ResNet",
    "build",
    "check",
    "check_pixels",
    "densenet",
    "detection_model",
    "detection_names",
    "mlp",
    "preprocessing",
    "preresnet",
    "recipe",
    "resnet",
    "segmentation_model",
    "segmentation_names",
    "timm_model",
    "torchvision_model",
    "torchvision_names",
    "transformers_model",
    "vgg",
]
