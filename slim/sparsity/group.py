"""L2 norm over the gammas of each channel group: the members of a residual stream shrink together or not at all.

Group lasso (Yuan & Lin 2006) on BatchNorm scales. Plain L1 lets one member of a stream stay large and so keeps the
whole group; the norm over the group presses on all of them until the last is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slim.sparsity.forecast import Forecast, shrink_forecast
from slim.sparsity.gammas import Gammas, collect, member_table
from slim.sparsity.progress import Progress
from slim.sparsity.strength import Strength

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class Group:
    """lam * sum_g sqrt(n_g) * ||gamma_g||_2 over channel groups g of n_g scales; subgradient 0 where the norm is 0.

    A group of one scale feels exactly `L1`. Scales that belong to no channel group are groups of one.

    Args:
        lam: strength.
        warmup, schedule: see `Strength`.
        norms, prunable_only: which scales, see `collect`.
        threshold: a gamma below it counts as "at zero" in `summary`.
    """

    exact_zeros = False

    def __init__(self, lam: float = 1e-4, *, warmup: float = 0.0, schedule: str = "constant", norms: str = "batch",
                 prunable_only: bool = False, threshold: float = 1e-2) -> None:  # fmt: skip
        self.strength = Strength(lam, warmup, schedule)
        self.norms, self.prunable_only, self.threshold = norms, prunable_only, threshold
        self._progress = Progress("group")
        self._gammas: Gammas

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self._find(model, graph)
        self._progress.attach(total_steps)

    def before_step(self, lr: float) -> None:
        """gamma.grad += lam * sqrt(n_g) * gamma / ||gamma_g||."""
        lam = self.strength.at(self._progress.before_step(), self._progress.total)
        if not lam:
            return
        flat = self._gammas.flat()
        norm = self._norms(flat)
        # 0 / 0 is 0 here: a dead group stays where it is.
        slope = flat * (self._root / norm.clamp_min(torch.finfo(flat.dtype).tiny))[self._index]
        pairs = [(w.grad, s) for w, s in zip(self._gammas.weights, self._gammas.views(slope), strict=True)]
        live = [(grad, s) for grad, s in pairs if grad is not None]
        if live:
            torch._foreach_add_([grad for grad, _ in live], [s for _, s in live], alpha=lam)

    def after_step(self, lr: float) -> None:
        """Count the step."""
        self._progress.step += 1

    def value(self) -> Tensor:
        """Lam * sum_g sqrt(n_g) * ||gamma_g||."""
        lam = self.strength.at(self._progress.step, self._progress.total)
        return lam * (self._root * self._norms(self._gammas.flat())).sum()

    def state_dict(self) -> dict[str, Any]:
        """The step alone: the strength follows from it."""
        return self._progress.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """See `Penalty.resize`."""
        self._find(model, graph)

    def summary(self) -> dict[str, float]:
        """``zero``: share of gammas below ``threshold``."""
        return {"zero": float((self._gammas.flat().abs() < self.threshold).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Shrink budget of a typical member, whose slope is about lam, against the median gamma."""
        return shrink_forecast("group", self._gammas.flat(), lrs, self.strength.at, self.strength.lam, momentum)

    def _find(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._gammas = collect(model, graph, norms=self.norms, prunable_only=self.prunable_only)
        table, index, counts = member_table(self._gammas.groups)
        device = self._gammas.device
        self._table = torch.as_tensor(table, device=device)
        self._index = torch.as_tensor(index, device=device)
        self._root = torch.as_tensor(counts, device=device, dtype=torch.float32).sqrt()

    def _norms(self, flat: Tensor) -> Tensor:
        """L2 norm of every group ``(G,)``; the padding of the table points at a zero behind the last entry."""
        padded = torch.nn.functional.pad(flat.square(), (0, 1))
        return padded[self._table].sum(1).sqrt()
