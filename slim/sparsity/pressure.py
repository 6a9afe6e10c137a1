"""A law that is a formula: what all such laws share. A law's own file shows nothing but its formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from slim.sparsity.forecast import Forecast, shrink_forecast
from slim.sparsity.gammas import Gammas, collect
from slim.sparsity.progress import Progress
from slim.sparsity.strength import Strength

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class Formula(Protocol):
    """A penalty of strength 1 on some gammas; it is made for them, and made anew when a rebuild changes them."""

    def slopes(self) -> Sequence[Tensor]:
        """Subgradient, one tensor like each of the gammas' ``weights``; empty where the law acts after the step."""

    def after(self, live: list[Tensor], amount: float) -> None:
        """What happens to the gammas that train right after the optimizer's step; ``amount`` is lr * lam."""

    def value(self) -> Tensor:
        """The penalty, 0-dim."""


class Pressure:
    """A `Penalty` of a formula and a strength. Its state is the step alone: everything else follows from it.

    Args:
        law: the penalty's name.
        formula: makes the formula for the gammas.
        strength: lam over the phase.
        norms, prunable_only: which scales, see `collect`.
        threshold: a gamma up to it counts as "at zero" in `summary`.
        exact_zeros: whether the law brings gammas to exactly zero.
        slope: subgradient at a small gamma, in units of lam.
        momentum: whether the optimizer's momentum multiplies the law, as it does a subgradient.
    """

    def __init__(self, law: str, formula: Callable[[Gammas], Formula], strength: Strength, *, norms: str,
                 prunable_only: bool, threshold: float = 0.0, exact_zeros: bool = False, slope: float = 1.0,
                 momentum: bool = True) -> None:  # fmt: skip
        self.law, self.strength, self.exact_zeros = law, strength, exact_zeros
        self._make, self._norms, self._prunable_only = formula, norms, prunable_only
        self._threshold, self._slope, self._momentum = threshold, slope, momentum
        self._progress = Progress(law)
        self._gammas: Gammas
        self._formula: Formula

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self.resize(model, graph)
        self._progress.attach(total_steps)

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """See `Penalty.resize`."""
        self._gammas = collect(model, graph, norms=self._norms, prunable_only=self._prunable_only)
        self._formula = self._make(self._gammas)

    def before_step(self, lr: float) -> None:
        """gamma.grad += lam * slope."""
        lam = self.strength.at(self._progress.before_step(), self._progress.total)
        slopes = self._formula.slopes() if lam else []
        live = [(w.grad, slope) for w, slope in zip(self._gammas.weights, slopes, strict=False) if w.grad is not None]
        if live:
            torch._foreach_add_([grad for grad, _ in live], [slope for _, slope in live], alpha=lam)

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """What the formula does after the step; then the step counts."""
        live = [w for w in self._gammas.weights if w.requires_grad]
        if live:
            self._formula.after(live, lr * self._lam())
        self._progress.step += 1

    def value(self) -> Tensor:
        """Lam times the formula."""
        return self._lam() * self._formula.value()

    def state_dict(self) -> dict[str, Any]:
        """See `Penalty.state_dict`."""
        return self._progress.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)

    def summary(self) -> dict[str, float]:
        """``zero``: share of gammas at zero."""
        return {"zero": float((self._gammas.flat().abs() <= self._threshold).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Shrink budget against the median gamma."""
        strength, momentum = self.strength, momentum if self._momentum else 0.0
        return shrink_forecast(
            self.law, self._gammas.flat(), lrs, strength.at, strength.lam, momentum, slope=self._slope
        )

    def _lam(self) -> float:
        return self.strength.at(self._progress.step, self._progress.total)
