"""L1 on gamma, the paper's law: subgradient lam * sign(gamma). Liu et al. 2017, arXiv:1708.06519, equation 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slim.sparsity.forecast import Forecast, shrink_forecast
from slim.sparsity.gammas import Gammas, collect
from slim.sparsity.progress import Progress
from slim.sparsity.strength import Strength

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class L1:
    """lam * sum |gamma|, by its subgradient, which is 0 at 0.

    Args:
        lam: strength; the paper uses 1e-4 (VGG) and 1e-5 (others) for 160 epochs.
        warmup, schedule: see `Strength`.
        norms, prunable_only: which scales, see `collect`. The paper penalizes every BatchNorm.
        threshold: a gamma below it counts as "at zero" in `summary` (L1 alone leaves small numbers, no zeros).
    """

    exact_zeros = False

    def __init__(self, lam: float = 1e-4, *, warmup: float = 0.0, schedule: str = "constant", norms: str = "batch",
                 prunable_only: bool = False, threshold: float = 1e-2) -> None:  # fmt: skip
        self.strength = Strength(lam, warmup, schedule)
        self.norms, self.prunable_only, self.threshold = norms, prunable_only, threshold
        self._progress = Progress("l1")
        self._gammas: Gammas

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self._gammas = collect(model, graph, norms=self.norms, prunable_only=self.prunable_only)
        self._progress.attach(total_steps)

    def before_step(self, lr: float) -> None:
        """gamma.grad += lam * sign(gamma)."""
        lam = self.strength.at(self._progress.before_step(), self._progress.total)
        pairs = [(w.grad, w.detach()) for w in self._gammas.weights]
        live = [(grad, w) for grad, w in pairs if grad is not None]
        if lam and live:
            torch._foreach_add_([grad for grad, _ in live], torch._foreach_sign([w for _, w in live]), alpha=lam)

    def after_step(self, lr: float) -> None:
        """Count the step."""
        self._progress.step += 1

    def value(self) -> Tensor:
        """Lam * sum |gamma|."""
        return self.strength.at(self._progress.step, self._progress.total) * self._gammas.flat().abs().sum()

    def state_dict(self) -> dict[str, Any]:
        """The step alone: the strength follows from it."""
        return self._progress.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """See `Penalty.resize`."""
        self._gammas = collect(model, graph, norms=self.norms, prunable_only=self.prunable_only)

    def summary(self) -> dict[str, float]:
        """``zero``: share of gammas below ``threshold``."""
        return {"zero": float((self._gammas.flat().abs() < self.threshold).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Shrink budget against the median gamma."""
        return shrink_forecast("l1", self._gammas.flat(), lrs, self.strength.at, self.strength.lam, momentum)
