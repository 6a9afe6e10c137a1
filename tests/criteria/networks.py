"""Small networks and data that the tests of criteria share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slim
from slim.channels import ChannelGraph

INPUTS = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """Two convolutions and a shortcut: one coupled stream, one free layer, one classifier."""

    def __init__(self, width: int = 6, inner: int = 5, classes: int = 3, norm: bool = True) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm else nn.Identity
        self.stem, self.stem_norm = nn.Conv2d(3, width, 3, padding=1, bias=not norm), make(width)
        self.first, self.first_norm = nn.Conv2d(width, inner, 3, padding=1, bias=not norm), make(inner)
        self.second, self.second_norm = nn.Conv2d(inner, width, 3, padding=1, bias=not norm), make(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.first_norm(self.first(x)))
        x = F.relu(x + self.second_norm(self.second(y)))
        return self.head(x.mean((2, 3)))


class Named(Residual):
    """The same, its layers called by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = F.relu(self.stem_norm(input=self.stem(input=x)))
        y = F.relu(self.first_norm(input=self.first(input=x)))
        x = F.relu(x + self.second_norm(input=self.second(input=y)))
        return self.head(input=x.mean((2, 3)))


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Scales, shifts and statistics as after some training, so that no two channels are alike."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1, 1, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.2, 2, generator=generator)  # type: ignore[union-attr]
    return model


def residual(norm: bool = True, seed: int = 0, **sizes: int) -> tuple[Residual, ChannelGraph]:
    """A shaken residual network and its graph."""
    torch.manual_seed(seed)
    model = Residual(norm=norm, **sizes)
    shaken(model, seed)
    return model, slim.trace(model, INPUTS)


def batches(count: int = 3, size: int = 8, classes: int = 3, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random images whose class is a simple function of them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(size, 3, 8, 8, generator=generator)
        found.append((x, x.mean((2, 3)).argmax(1) % classes))
    return found


def space(graph: ChannelGraph, module: str) -> list[int]:
    """Groups of the channels that ``module`` makes or normalizes, in the order of its channels."""
    return next(s.groups.tolist() for s in graph.spaces if module in s.modules)
