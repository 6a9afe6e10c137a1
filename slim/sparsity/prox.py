"""L1 on gamma by its proximal step: a soft threshold after the optimizer's, so that zeros are exact.

The step of Parikh & Boyd 2014, "Proximal Algorithms", section 6.5.2; on BatchNorm scales Ye et al. 2018,
arXiv:1802.00124.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slim.sparsity.formula_penalty import FormulaPenalty
from slim.sparsity.gammas import Gammas
from slim.sparsity.lam_schedule import LamSchedule


def prox(lam: float = 1e-3, *, warmup: float = 0.0, schedule: str = "constant", norms: str = "batch",
         prunable_only: bool = False) -> FormulaPenalty:  # fmt: skip
    """After each step gamma becomes sign(gamma) * max(|gamma| - lr * lam, 0).

    Momentum does not multiply this step as it does a subgradient, so at momentum 0.9 the same shrinkage as `l1` needs
    ten times its lam.

    Args:
        lam: weight of the penalty.
        warmup, schedule: see `LamSchedule`.
        norms, prunable_only: which scales, see `collect_gammas`.
    """
    return FormulaPenalty(
        "prox", SoftThreshold, LamSchedule(lam, warmup, schedule), norms=norms, prunable_only=prunable_only,
        exact_zeros=True, momentum=False,
    )  # fmt: skip


@dataclass
class SoftThreshold:
    """Sum of |gamma|, by its proximal operator."""

    gammas: Gammas

    def subgradients(self) -> Sequence[Tensor]:
        """None: the law acts after the optimizer."""
        return []

    def after_step(self, weights: list[Tensor], step_size: float) -> None:
        """gamma - clamp(gamma, -t, t): exact at zero, in three calls for all layers."""
        if step_size:
            inside = torch._foreach_clamp_max(weights, step_size)
            torch._foreach_clamp_min_(inside, -step_size)
            torch._foreach_sub_(weights, inside)

    def value(self) -> Tensor:
        """Sum of |gamma|."""
        return self.gammas.flat().abs().sum()
