"""Penalties given by a formula: everything they share. The file of each law holds only its formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from slim.errors import expect_number
from slim.sparsity.forecast import Forecast, shrink_forecast
from slim.sparsity.gammas import Gammas, check_norms, collect_gammas
from slim.sparsity.lam_schedule import LamSchedule
from slim.sparsity.progress import Progress

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class Formula(Protocol):
    """A penalty with lam = 1 on given gammas; a new one is made when a rebuild changes the gammas."""

    def subgradients(self) -> Sequence[Tensor]:
        """Subgradient: one tensor per gamma, same shape; empty for a law that acts only after the step."""

    def after_step(self, weights: list[Tensor], step_size: float) -> None:
        """Update the trainable gammas in place after the optimizer's step; ``step_size`` is lr * lam."""

    def value(self) -> Tensor:
        """The penalty, 0-dim."""


class FormulaPenalty:
    """A `Penalty` made of a formula and a schedule of lam. Its only state is the step.

    Args:
        law: name of the penalty.
        formula: builds the formula for given gammas.
        lam_schedule: lam over the phase.
        norms, prunable_only: which scales, see `collect_gammas`.
        threshold: a gamma up to it counts as "at zero" in `summary`.
        exact_zeros: whether the law brings gammas to exactly zero.
        slope: subgradient at a small gamma, in units of lam.
        momentum: whether the optimizer's momentum multiplies the law, as it does a subgradient.
    """

    def __init__(self, law: str, formula: Callable[[Gammas], Formula], lam_schedule: LamSchedule, *, norms: str,
                 prunable_only: bool, threshold: float = 0.0, exact_zeros: bool = False, slope: float = 1.0,
                 momentum: bool = True) -> None:  # fmt: skip
        expect_number("threshold", threshold, "[0, inf)", "Set penalty.threshold.")
        check_norms(norms)
        self.law, self.lam_schedule, self.exact_zeros = law, lam_schedule, exact_zeros
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
        self._gammas = collect_gammas(model, graph, norms=self._norms, prunable_only=self._prunable_only)
        self._formula = self._make(self._gammas)

    def scales(self) -> list[Tensor]:
        """See `Penalty.scales`."""
        self._progress.check_attached()
        return list(self._gammas.weights)

    def before_step(self, lr: float) -> None:
        """gamma.grad += lam * subgradient."""
        lam = self.lam_schedule.at(self._progress.before_step(), self._progress.total)
        slopes = self._formula.subgradients() if lam else []
        pairs = [(w.grad, slope) for w, slope in zip(self._gammas.weights, slopes, strict=False) if w.grad is not None]
        if pairs:
            torch._foreach_add_([grad for grad, _ in pairs], [slope for _, slope in pairs], alpha=lam)

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Apply the formula's update after the optimizer's step, and count the step."""
        trainable = [w for w in self._gammas.weights if w.requires_grad]
        if trainable:
            self._formula.after_step(trainable, lr * self.lam)
        self._progress.step += 1

    def value(self) -> Tensor:
        """Lam times the formula."""
        self._progress.check_attached()
        return self.lam * self._formula.value()

    def state_dict(self) -> dict[str, Any]:
        """See `Penalty.state_dict`."""
        return self._progress.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)

    def summary(self) -> dict[str, float]:
        """``zero``: share of gammas at zero."""
        self._progress.check_attached()
        return {"zero": float((self._gammas.flat().abs() <= self._threshold).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Shrink budget against the median gamma."""
        self._progress.check_attached()
        schedule, momentum = self.lam_schedule, momentum if self._momentum else 0.0
        return shrink_forecast(
            self.law, self._gammas.flat(), lrs, schedule.at, schedule.lam, momentum, slope=self._slope
        )

    @property
    def lam(self) -> float:
        """Of the next step."""
        return self.lam_schedule.at(self._progress.step, self._progress.total)
