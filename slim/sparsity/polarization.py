"""Push gammas apart, towards zero or towards the rest. Zhuang et al., NeurIPS 2020, "Neuron-level Structured Pruning
using Polarization Regularizer", equation 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.sparsity.forecast import Forecast, shrink_forecast
from slim.sparsity.gammas import Gammas, collect
from slim.sparsity.progress import Progress
from slim.sparsity.strength import Strength

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class Polarization:
    """lam * (t * sum |gamma| - sum |gamma - mean(gamma)|), gammas held in [0, bound].

    The mean is over all gammas, as in the paper. Its own derivative is kept, so the subgradient is exact:
    lam * (t * sign(g_i) - sign(g_i - m) + mean_j sign(g_j - m)).

    Args:
        lam: strength; the paper uses around 1e-4.
        t: weight of the L1 part; 1.2 in the paper. Larger means sparser.
        bound: gammas are clamped into [0, bound] after each step; the paper's a, 1.
        warmup, schedule: see `Strength`.
        norms, prunable_only: which scales, see `collect`.
        threshold: a gamma below it counts as "at zero" in `summary`.
    """

    exact_zeros = False

    def __init__(self, lam: float = 1e-4, *, t: float = 1.2, bound: float = 1.0, warmup: float = 0.0,
                 schedule: str = "constant", norms: str = "batch", prunable_only: bool = False,
                 threshold: float = 1e-2) -> None:  # fmt: skip
        if not bound > 0:
            raise SlimError(f"bound must be > 0. Got bound={bound}. Set penalty.bound.")
        self.strength = Strength(lam, warmup, schedule)
        self.t, self.bound, self.threshold = t, bound, threshold
        self.norms, self.prunable_only = norms, prunable_only
        self._progress = Progress("polarization")
        self._gammas: Gammas

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self._gammas = collect(model, graph, norms=self.norms, prunable_only=self.prunable_only)
        self._progress.attach(total_steps)

    def before_step(self, lr: float) -> None:
        """gamma.grad += lam * (t * sign(g) - sign(g - m) + mean sign(g - m))."""
        lam = self.strength.at(self._progress.before_step(), self._progress.total)
        if not lam:
            return
        flat = self._gammas.flat()
        side = torch.sign(flat - flat.mean())
        slope = torch.sign(flat).mul_(self.t).sub_(side).add_(side.mean())
        pairs = [(w.grad, s) for w, s in zip(self._gammas.weights, self._gammas.views(slope), strict=True)]
        live = [(grad, s) for grad, s in pairs if grad is not None]
        if live:
            torch._foreach_add_([grad for grad, _ in live], [s for _, s in live], alpha=lam)

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Clamp the gammas into [0, bound]."""
        live = [w for w in self._gammas.weights if w.requires_grad]
        torch._foreach_clamp_min_(live, 0.0)
        torch._foreach_clamp_max_(live, self.bound)
        self._progress.step += 1

    def value(self) -> Tensor:
        """Lam * (t * sum |g| - sum |g - m|)."""
        flat = self._gammas.flat()
        lam = self.strength.at(self._progress.step, self._progress.total)
        return lam * (self.t * flat.abs().sum() - (flat - flat.mean()).abs().sum())

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
        """Shrink budget of a gamma below the mean, whose slope is about t + 1, against the median gamma."""
        strength = self.strength
        return shrink_forecast(
            "polarization", self._gammas.flat(), lrs, strength.at, strength.lam, momentum, slope=self.t + 1
        )
