"""Residual networks in the CIFAR form: 6n+2 layers in three stages of 16, 32 and 64 channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from slim.errors import SlimError
from slim.models.checks import blocks_per_stage, integer
from slim.models.initialization import init_convolutions, init_gamma


class PadShortcut(nn.Module):
    """Option A: take every second pixel and append channels of zeros; no parameters."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C + extra, ceil(H / stride), ceil(W / stride))."""
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            if option == "A":
                self.shortcut = PadShortcut(width - width_in, stride)
            else:
                self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stem, three stages of basic blocks, global mean, one linear layer."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        width_in = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            stage = []
            for index in range(blocks):
                stage.append(BasicBlock(width_in, width, stride if index == 0 else 1, option))
                width_in = width
            stages.append(nn.Sequential(*stage))
        self.stage1, self.stage2, self.stage3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]


def resnet(
    depth: int = 20,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    option: str = "B",
    gamma_init: float | None = 0.5,
) -> ResNet:
    """ResNet for small images (He et al. 2016, arXiv:1512.03385, section 4.2).

    Args:
        depth: 6n+2, such as 20, 56 or 110.
        num_classes: Classes, outputs of the last layer.
        in_channels: Channels of the images.
        option: Shortcut between stages. ``"B"`` (default) is a 1x1 convolution with BatchNorm, whose channels can be
            removed like any other's. ``"A"`` is the paper's: subsample and pad with zero channels.
        gamma_init: Initial value of every BatchNorm scale; None leaves PyTorch's 1.

    >>> sum(p.numel() for p in resnet(20, option="A").parameters())
    269722

    Raises:
        SlimError: another depth or option.
    """
    blocks = blocks_per_stage(depth, 6, 2, "resnet", 20)
    if option not in ("A", "B"):
        raise SlimError(f"option of resnet must be A or B. Got option={option!r}. Set model.option.")
    classes = integer("num_classes", num_classes, "num_classes")
    model = ResNet(blocks, classes, integer("in_channels", in_channels, "in_channels"), option)
    init_convolutions(model)
    init_gamma(model, gamma_init)
    return model
