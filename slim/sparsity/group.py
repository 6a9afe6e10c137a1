"""L2 norm over the gammas of each channel group: the members of a residual stream shrink together or not at all.

Group lasso (Yuan & Lin 2006) on BatchNorm scales. Plain L1 lets one member of a stream stay large and so keeps the
whole group; the norm over the group shrinks all members until the last is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slim.sparsity.formula_penalty import FormulaPenalty
from slim.sparsity.gammas import Gammas, member_table
from slim.sparsity.lam_schedule import LamSchedule


def group(lam: float = 1e-4, *, warmup: float = 0.0, schedule: str = "constant", norms: str = "batch",
          prunable_only: bool = False, threshold: float = 1e-2) -> FormulaPenalty:  # fmt: skip
    """lam * sum_g sqrt(n_g) * ||gamma_g||_2 over channel groups g of n_g scales; subgradient 0 where the norm is 0.

    A group of one scale has exactly the subgradient of `l1`. Scales that belong to no channel group are groups of one.

    Args:
        lam: weight of the penalty.
        warmup, schedule: see `LamSchedule`.
        norms, prunable_only: which scales, see `collect_gammas`.
        threshold: a gamma up to it counts as "at zero" in `summary`.
    """
    lam_schedule = LamSchedule(lam, warmup, schedule)
    return FormulaPenalty(
        "group", GroupNorms, lam_schedule, norms=norms, prunable_only=prunable_only, threshold=threshold
    )


class GroupNorms:
    """sum_g sqrt(n_g) * ||gamma_g||."""

    def __init__(self, gammas: Gammas) -> None:
        self.gammas = gammas
        table, index, counts = member_table(gammas.groups)
        self._table = torch.as_tensor(table, device=gammas.device)
        self._index = torch.as_tensor(index, device=gammas.device)
        self._root = torch.as_tensor(counts, device=gammas.device, dtype=torch.float32).sqrt()

    def subgradients(self) -> Sequence[Tensor]:
        """sqrt(n_g) * gamma / ||gamma_g||, about 1 for a typical member."""
        flat = self.gammas.flat()
        largest, norms = self._norms(flat)
        # 0 / 1 is 0 here: a dead group stays where it is. The norm of a living one is 1 or more.
        return self.gammas.views(flat / largest[self._index] * (self._root / norms.clamp_min(1))[self._index])

    def after_step(self, weights: list[Tensor], step_size: float) -> None:
        """Nothing."""

    def value(self) -> Tensor:
        """sum_g sqrt(n_g) * ||gamma_g||."""
        largest, norms = self._norms(self.gammas.flat())
        return (self._root * largest * norms).sum()

    def _norms(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Of every group ``(G,)`` its largest magnitude (1 where that is 0), and its L2 norm in units of that.

        The square of a small gamma would be 0. The padding of the table points at a zero behind the last entry.
        """
        members = torch.nn.functional.pad(flat.abs(), (0, 1))[self._table]
        largest = members.amax(1)
        largest = torch.where(largest > 0, largest, 1)
        return largest, (members / largest[:, None]).square().sum(1).sqrt()
