"""A small residual network whose BatchNorms have seen something, and images for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 12


class Residual(nn.Module):
    """Convolutions with BatchNorm, a ReLU that is called twice, a sum, and a BatchNorm that cannot be folded."""

    def __init__(self, *, all_fold: bool = False) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.before: nn.Module = nn.Identity() if all_fold else nn.BatchNorm2d(8)
        self.three = nn.Conv2d(8, 12, 3, stride=2)
        self.relu, self.classify = nn.ReLU(), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, 5)."""
        x = self.relu(self.norm1(self.one(images)))
        x = self.relu(x + self.norm2(self.two(x)))
        x = self.three(F.relu(self.before(x)))
        logits: Tensor = self.classify(x.mean((2, 3)))
        return logits


def network(*, all_fold: bool = False) -> nn.Module:
    """With statistics as after training, and logits that differ."""
    torch.manual_seed(3)
    made = Residual(all_fold=all_fold)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
        for _ in range(20):
            made(torch.randn(16, 3, SIZE, SIZE))
        made.classify.weight.mul_(10)
    return made.eval()


def images(batches: int = 4, seed: int = 0) -> list[Tensor]:
    """Batches (16, 3, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, SIZE, SIZE, generator=generator) for _ in range(batches)]
