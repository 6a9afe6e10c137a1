"""Small networks and a plain training loop for the tests of the laws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from slim.channels import ChannelGraph, trace
from slim.sparsity import Penalty


class Residual(nn.Module):
    """A stem and two blocks on one stream: bn0, a.bn2 and b.bn2 scale the same channel groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a1, self.abn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.a2, self.abn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.abn1(self.a1(x)))
        x = torch.relu(x + self.abn2(self.a2(y)))
        return self.head(x.mean((2, 3)))


def grouped() -> nn.Sequential:
    """Two grouped convolutions that share a width but not the number of groups."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip


def started(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network with gammas of both signs and betas away from zero."""
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net


def graph_of(net: nn.Module) -> ChannelGraph:
    return trace(net, torch.zeros(1, 3, 8, 8))


def sgd(net: nn.Module, momentum: float = 0.9, weight_decay: float = 1e-4) -> torch.optim.SGD:
    return torch.optim.SGD(
        net.parameters(), lr=0.05, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
    )


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, penalty: Penalty | None, first: int, last: int) -> None:
    """Optimizer steps ``first`` to ``last`` (excluded); the batch of a step follows from its number alone."""
    net.train()
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        del loss
        if penalty is not None:
            penalty.before_step(0.05)
        optimizer.step()
        if penalty is not None:
            penalty.after_step(0.05)


def gammas(net: nn.Module) -> Tensor:
    return torch.cat([m.weight.detach() for m in net.modules() if isinstance(m, nn.BatchNorm2d)])


def gamma_grads(net: nn.Module) -> Tensor:
    return torch.cat([m.weight.grad.detach() for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
