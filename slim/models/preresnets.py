"""Pre-activation ResNet with bottlenecks in the CIFAR form: 9n+2 layers, ResNet-164 of Network Slimming."""

from __future__ import annotations

import torch
from torch import nn

from slim.models.checks import blocks_per_stage, integer
from slim.models.initialization import init_convolutions, init_gamma


class Bottleneck(nn.Module):
    """BatchNorm, ReLU and convolution three times (1x1, 3x3, 1x1); the stream passes by untouched."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        width_out = width * self.expansion
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        return y + self.shortcut(x)  # type: ignore[no-any-return]


class PreResNet(nn.Module):
    """Stem, three stages of bottlenecks, a last BatchNorm and ReLU, global mean, one linear layer."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        stages = []
        width_in = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            stage = []
            for index in range(blocks):
                stage.append(Bottleneck(width_in, width, stride if index == 0 else 1))
                width_in = width * Bottleneck.expansion
            stages.append(nn.Sequential(*stage))
        self.stage1, self.stage2, self.stage3 = stages
        self.bn = nn.BatchNorm2d(width_in)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_in, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(self.relu(self.bn(x))), 1))  # type: ignore[no-any-return]


def preresnet(
    depth: int = 164, *, num_classes: int = 10, in_channels: int = 3, gamma_init: float | None = 0.5
) -> PreResNet:
    """Pre-activation bottleneck ResNet for small images (He et al. 2016, arXiv:1603.05027).

    The reference implementation of Network Slimming carries a selection layer in front of every block, 8,080 more
    entries at depth 164; here selection is added when the network is rebuilt, so 1,703,258 parameters.

    Args:
        depth: 9n+2, such as 164.
        num_classes: Classes, outputs of the last layer.
        in_channels: Channels of the images.
        gamma_init: Initial value of every BatchNorm scale; None leaves PyTorch's 1.

    >>> sum(p.numel() for p in preresnet(164).parameters())
    1703258

    Raises:
        SlimError: another depth.
    """
    blocks = blocks_per_stage(depth, 9, 2, "preresnet", 164)
    classes = integer("num_classes", num_classes, "num_classes")
    model = PreResNet(blocks, classes, integer("in_channels", in_channels, "in_channels"))
    init_convolutions(model)
    init_gamma(model, gamma_init)
    return model
