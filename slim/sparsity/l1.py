"""L1 on gamma, the paper's law: subgradient lam * sign(gamma). Liu et al. 2017, arXiv:1708.06519, equation 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slim.sparsity.formula_penalty import FormulaPenalty
from slim.sparsity.gammas import Gammas
from slim.sparsity.lam_schedule import LamSchedule


def l1(lam: float = 1e-4, *, warmup: float = 0.0, schedule: str = "constant", norms: str = "batch",
       prunable_only: bool = False, threshold: float = 1e-2) -> FormulaPenalty:  # fmt: skip
    """lam * sum |gamma|, by its subgradient, which is 0 at 0.

    Args:
        lam: weight of the penalty; the paper uses 1e-4 (VGG) and 1e-5 (others) for 160 epochs.
        warmup, schedule: see `LamSchedule`.
        norms, prunable_only: which scales, see `collect_gammas`. The paper penalizes every BatchNorm.
        threshold: a gamma up to it counts as "at zero" in `summary` (L1 alone leaves small numbers, no zeros).
    """
    lam_schedule = LamSchedule(lam, warmup, schedule)
    return FormulaPenalty(
        "l1", AbsoluteSum, lam_schedule, norms=norms, prunable_only=prunable_only, threshold=threshold
    )


@dataclass
class AbsoluteSum:
    """Sum of |gamma|."""

    gammas: Gammas

    def subgradients(self) -> Sequence[Tensor]:
        """sign(gamma)."""
        return torch._foreach_sign([w.detach() for w in self.gammas.weights])

    def after_step(self, weights: list[Tensor], step_size: float) -> None:
        """Nothing."""

    def value(self) -> Tensor:
        """Sum of |gamma|."""
        return self.gammas.flat().abs().sum()
