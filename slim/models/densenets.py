"""DenseNet in the CIFAR form without bottlenecks: 3n+4 layers in three dense blocks."""

from __future__ import annotations

import torch
from torch import nn

from slim.models.checks import blocks_per_stage, integer
from slim.models.initialization import init_convolutions, init_gamma


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, a 3x3 convolution of ``growth`` channels, appended to the input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat((x, self.conv(self.relu(self.bn(x)))), 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution that keeps the width, mean of 2x2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(width, width, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H / 2, W / 2)."""
        return self.pool(self.conv(self.relu(self.bn(x))))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """Stem of 2 * growth channels, three dense blocks with two transitions, BatchNorm, ReLU, global mean, linear."""

    def __init__(self, layers: int, growth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for block in range(3):
            blocks.append(nn.Sequential(*(DenseLayer(width + index * growth, growth) for index in range(layers))))
            width += layers * growth
            if block < 2:
                blocks.append(Transition(width))
        self.features = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.features(self.conv1(x))
        return self.fc(torch.flatten(self.pool(self.relu(self.bn(x))), 1))  # type: ignore[no-any-return]


def densenet(
    depth: int = 40,
    *,
    growth: int = 12,
    num_classes: int = 10,
    in_channels: int = 3,
    gamma_init: float | None = 0.5,
) -> DenseNet:
    """DenseNet for small images (Huang et al. 2017, arXiv:1608.06993, section 4.2; Network Slimming's DenseNet-40).

    Args:
        depth: 3n+4, such as 40.
        growth: Channels that each layer adds.
        num_classes: Classes, outputs of the last layer.
        in_channels: Channels of the images.
        gamma_init: Initial value of every BatchNorm scale; None leaves PyTorch's 1.

    The reference implementation of Network Slimming carries a selection layer in front of every convolution, 9,360
    more entries at depth 40 (1,068,658); here selection is added when the network is rebuilt.

    >>> sum(p.numel() for p in densenet(40).parameters())
    1059298

    Raises:
        SlimError: another depth, or a growth below 1.
    """
    layers = blocks_per_stage(depth, 3, 4, "densenet", 40)
    classes = integer("num_classes", num_classes, "num_classes")
    channels = integer("in_channels", in_channels, "in_channels")
    model = DenseNet(layers, integer("growth", growth, "model.growth"), classes, channels)
    init_convolutions(model)
    init_gamma(model, gamma_init)
    return model
