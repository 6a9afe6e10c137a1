"""The training step that the benchmarks share: forward, loss, backward, SGD with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim.models import build
from slim.runs.hardware import Choice, choose
from slim.runs.schema import Hardware

BATCH = 128
NETWORKS: dict[str, dict[str, int]] = {"vgg": {"depth": 16}, "resnet": {"depth": 56}, "densenet": {"depth": 40}}


def network(family: str, **options: object) -> nn.Module:
    """A network of slim.models for ten classes, with the same weights every time."""
    torch.manual_seed(0)
    return build(family, num_classes=10, **options)


def images(batch: int = BATCH, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise and labels: the time of a step does not depend on what is in the pictures."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator)
    return x, torch.randint(10, (batch,), generator=generator)


@dataclass
class Step:
    """One optimizer step per call, in the given precision and memory layout."""

    model: nn.Module
    bf16: bool = False
    channels_last: bool = False
    device: str = "cpu"
    before: Callable[[float], None] | None = None
    after: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        self.model.to(self.device).train()
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4
        )

    def __call__(self, x: Tensor, y: Tensor) -> None:
        x, y = x.to(self.device), y.to(self.device)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.before is not None:
            self.before(1e-3)
        self.optimizer.step()
        if self.after is not None:
            self.after(1e-3)


def chosen() -> Choice:
    """What ``trainer=auto`` comes to on this machine."""
    return choose(Hardware())
