"""A very small network with everything a criterion meets: a free layer, a residual stream, layers of several widths."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Small(nn.Module):
    """Six convolutions, widths 16 to 64, one residual block; 4.1 M MACs on 1x3x32x32."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv(3, 16), norm(16)
        self.down1, self.down1_norm = conv(16, 24, 2), norm(24)
        self.down2, self.down2_norm = conv(24, 40, 2), norm(40)
        self.block1, self.block1_norm = conv(40, 40), norm(40)
        self.block2, self.block2_norm = conv(40, 40), norm(40)
        self.down3, self.down3_norm = conv(40, 64, 2), norm(64)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, 32, 32)."""
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.down1_norm(self.down1(x)))
        x = F.relu(self.down2_norm(self.down2(x)))
        y = F.relu(self.block1_norm(self.block1(x)))
        x = F.relu(x + self.block2_norm(self.block2(y)))
        x = F.relu(self.down3_norm(self.down3(x)))
        return self.head(x.mean((2, 3)))


def conv(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias."""
    return nn.Conv2d(cin, cout, 3, stride, 1, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with gamma 0.5 at the start, as Liu et al. 2017."""
    made = nn.BatchNorm2d(channels)
    nn.init.constant_(made.weight, 0.5)
    return made


def build(seed: int) -> Small:
    """A network with weights that follow from the seed."""
    torch.manual_seed(seed)
    return Small().to(memory_format=torch.channels_last)
