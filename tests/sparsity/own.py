"""A law as a user would write it: weight decay on the scales alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slim.channels import ChannelGraph
from slim.sparsity import Forecast, Penalty, gamma_parameters


class Ridge:
    """``strength`` times the sum of squares of the scales."""

    exact_zeros = False

    def __init__(self, strength: float = 0.01) -> None:
        self.strength, self.steps = strength, 0

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        self.resize(model, graph)

    def scales(self) -> list[Tensor]:
        return self.gammas

    def before_step(self, lr: float) -> None:
        for gamma in self.gammas:
            assert gamma.grad is not None
            gamma.grad += 2 * self.strength * gamma.detach()

    def after_step(self, lr: float) -> None:
        self.steps += 1

    def value(self) -> Tensor:
        return self.strength * torch.cat(self.gammas).detach().square().sum()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["step"]

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.gammas: list[Tensor] = list(gamma_parameters(graph, model))

    def summary(self) -> dict[str, float]:
        return {"zero": float((torch.cat(self.gammas).abs() < 1e-3).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        return Forecast(0.0, 1.0, False, f"ridge: strength {self.strength:g}")


class WithAnyOption(Ridge):
    """Takes what its parent takes."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)


class Lacking(Penalty):
    """Inherits all methods from the protocol, where they do nothing, but one."""

    def scales(self) -> list[Tensor]:
        return []
