"""Polarization: every gamma is pushed towards zero or away from the mean.

Zhuang et al., NeurIPS 2020, "Neuron-level Structured Pruning using Polarization Regularizer", equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from slim.errors import SlimError
from slim.sparsity.formula_penalty import FormulaPenalty
from slim.sparsity.gammas import Gammas
from slim.sparsity.lam_schedule import LamSchedule


def polarization(lam: float = 1e-4, *, t: float = 1.2, bound: float = 1.0, warmup: float = 0.0,
                 schedule: str = "constant", norms: str = "batch", prunable_only: bool = False,
                 threshold: float = 1e-2) -> FormulaPenalty:  # fmt: skip
    """lam * (t * sum |gamma| - sum |gamma - mean(gamma)|), gammas held in [0, bound].

    The mean is over all gammas, as in the paper. Its own derivative is kept, so the subgradient is exact:
    lam * (t * sign(g_i) - sign(g_i - m) + mean_j sign(g_j - m)).

    Args:
        lam: weight of the penalty; the paper uses around 1e-4.
        t: weight of the L1 part, 0 or more; 1.2 in the paper. Larger means sparser.
        bound: gammas are clamped into [0, bound] after each step; the paper's a, 1.
        warmup, schedule: see `LamSchedule`.
        norms, prunable_only: which scales, see `collect_gammas`.
        threshold: a gamma up to it counts as "at zero" in `summary`.
    """
    if not 0 <= t < math.inf:
        raise SlimError(f"t must be a finite number >= 0. Got t={t}. Set penalty.t to 1.2.")
    if not bound > 0:
        raise SlimError(f"bound must be > 0. Got bound={bound}. Set penalty.bound.")
    return FormulaPenalty(
        "polarization", partial(Polarized, t=t, bound=bound), LamSchedule(lam, warmup, schedule), norms=norms,
        prunable_only=prunable_only, threshold=threshold, slope=t + 1,
    )  # fmt: skip


@dataclass
class Polarized:
    """t * sum |g| - sum |g - m|."""

    gammas: Gammas
    t: float
    bound: float

    def subgradients(self) -> Sequence[Tensor]:
        """t * sign(g) - sign(g - m) + mean sign(g - m); about t + 1 for a gamma below the mean."""
        flat = self.gammas.flat()
        side = torch.sign(flat - flat.mean())
        return self.gammas.views(torch.sign(flat).mul_(self.t).sub_(side).add_(side.mean()))

    def after_step(self, weights: list[Tensor], step_size: float) -> None:
        """Clamp the gammas into [0, bound]."""
        torch._foreach_clamp_min_(weights, 0.0)
        torch._foreach_clamp_max_(weights, self.bound)

    def value(self) -> Tensor:
        """t * sum |g| - sum |g - m|."""
        flat = self.gammas.flat()
        return self.t * flat.abs().sum() - (flat - flat.mean()).abs().sum()
