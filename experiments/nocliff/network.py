"""The two networks of the experiment, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS: tuple[int | str, ...] = (64, "M", 128, "M", 256, 256, "M", 256, 256)
GAMMA = 0.5


def vgg(widths: Sequence[int | str] = WIDTHS) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU per width, ``M`` a max pool, then a global average and one linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return start(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)))


class Block(nn.Module):
    """Two 3x3 convolutions around an identity; a 1x1 convolution where the shape changes."""

    def __init__(self, inner: int, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, cin, H, W)`` to ``(B, cout, H / stride, W / stride)``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet20(width: float = 1.0) -> nn.Sequential:
    """ResNet-20 in its CIFAR form (projection shortcuts); ``width`` scales every layer."""
    c = [max(1, round(width * w)) for w in (16, 32, 64)]
    layers: list[nn.Module] = [nn.Conv2d(3, c[0], 3, 1, 1, bias=False), nn.BatchNorm2d(c[0]), nn.ReLU()]
    before = c[0]
    for stage, channels in enumerate(c):
        for i in range(3):
            layers.append(Block(channels, before, channels, 2 if stage and not i else 1))
            before = channels
    return start(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)))


def start(net: nn.Sequential) -> nn.Sequential:
    """He initialisation and the paper's gamma of 0.5."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, GAMMA)
    return net.to(memory_format=torch.channels_last)
