"""One small network per structure that selection must respect."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import slim
from slim.channels import ChannelGraph


def block(cin: int, cout: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
    )


class Residual(nn.Module):
    """Two residual blocks over one stream."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = block(3, width, 3)
        self.a, self.b = (nn.Sequential(block(width, 12, 3), block(12, width)) for _ in range(2))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        x = x + self.a(x)
        x = x + self.b(x)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Pre-activation layers that read everything before them, as DenseNet."""

    def __init__(self, growth: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + growth * i), nn.ReLU(), nn.Conv2d(8 + growth * i, growth, 3, padding=1))
            for i in range(layers)
        )
        self.norm = nn.BatchNorm2d(8 + growth * layers)
        self.head = nn.Linear(8 + growth * layers, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(self.norm(x).relu().mean((2, 3)))


class Grouped(nn.Module):
    """ResNeXt's bottleneck: a convolution of four groups between two plain ones."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 16, 3), block(16, 24, 3, groups), block(24, 10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).mean((2, 3)))


class Shuffle(nn.Module):
    """ShuffleNet-v2's unit, three times: split, transform one half, concatenate, shuffle."""

    def __init__(self, width: int = 16, units: int = 3) -> None:
        super().__init__()
        half = width // 2
        self.stem = block(3, width, 3)
        self.units = nn.ModuleList(
            nn.Sequential(block(half, half), block(half, half, 3, half), block(half, half)) for _ in range(units)
        )
        self.last = block(width, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for unit in self.units:
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, unit(right)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).mean((2, 3)))


class Plain(nn.Module):
    """No normalization at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 16, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.body(x)


NETWORKS = {
    "residual": (Residual, "group"),
    "residual-select": (Residual, "select"),
    "dense": (Dense, "group"),
    "dense-select": (Dense, "select"),
    "grouped": (Grouped, "group"),
    "shuffle": (Shuffle, "group"),
    "plain": (Plain, "group"),
}
INPUTS = torch.zeros(1, 3, 8, 8)


@functools.cache
def network(name: str) -> tuple[nn.Module, ChannelGraph]:
    """A network of that structure and its graph; shared, for nothing here changes either."""
    torch.manual_seed(0)
    make, residual = NETWORKS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.1, 1)
            module.bias.data.normal_()
    return model, slim.trace(model, INPUTS, residual=residual)
