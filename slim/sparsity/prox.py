"""L1 on gamma by its proximal step: a soft threshold after the optimizer's, so that zeros are exact.

The step of Parikh & Boyd 2014, "Proximal Algorithms", section 6.5.2; on BatchNorm scales Ye et al. 2018,
arXiv:1802.00124.
"""

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


class Prox:
    """After each step gamma becomes sign(gamma) * max(|gamma| - lr * lam, 0).

    Momentum does not multiply this step as it does a subgradient, so at momentum 0.9 the same pressure as `L1` needs
    ten times its lam.

    Args:
        lam: strength.
        warmup, schedule: see `Strength`.
        norms, prunable_only: which scales, see `collect`.
    """

    exact_zeros = True

    def __init__(self, lam: float = 1e-3, *, warmup: float = 0.0, schedule: str = "constant", norms: str = "batch",
                 prunable_only: bool = False) -> None:  # fmt: skip
        self.strength = Strength(lam, warmup, schedule)
        self.norms, self.prunable_only = norms, prunable_only
        self._progress = Progress("prox")
        self._gammas: Gammas

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self._gammas = collect(model, graph, norms=self.norms, prunable_only=self.prunable_only)
        self._progress.attach(total_steps)

    def before_step(self, lr: float) -> None:
        """Nothing: the law acts after the optimizer."""
        self._progress.before_step()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """The soft threshold lr * lam."""
        threshold = lr * self.strength.at(self._progress.step, self._progress.total)
        live = [w for w in self._gammas.weights if w.requires_grad]
        if threshold and live:
            # gamma - clamp(gamma, -t, t) is the soft threshold, exact at zero, in three calls for all layers.
            inside = torch._foreach_clamp_max(live, threshold)
            torch._foreach_clamp_min_(inside, -threshold)
            torch._foreach_sub_(live, inside)
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
        """``zero``: share of gammas at exactly zero."""
        return {"zero": float((self._gammas.flat() == 0).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Shrink budget sum(lr * lam) against the median gamma; momentum plays no part."""
        return shrink_forecast("prox", self._gammas.flat(), lrs, self.strength.at, self.strength.lam, 0.0)
