"""Shrink to zero exactly what the budget will take: a controller, with no strength to tune.

L1 pushes on every gamma and hopes that enough of them fall; whatever the cut then takes beyond those is alive. Here the
law knows the budget. On a cubic schedule (Zhu & Gupta 2017, arXiv:1710.01878) it asks `slim.select` which channels a
growing part of the budget would remove, scales their gamma and beta down to exactly zero over a short window, and lets
the others train unpenalized. A channel that ranks higher again before it reached zero is released.

The ranking is data-driven and free: a running mean of (gamma * d loss/d gamma + beta * d loss/d beta)^2, the first-order
effect of removing the channel (Molchanov et al. 2019, arXiv:1906.10771, gate placed after the normalization).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.sparsity.forecast import Forecast
from slim.sparsity.gammas import Gammas, collect
from slim.sparsity.progress import Progress

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

CRITERIA = ("taylor", "gamma")


class Target:
    """Bring the channels outside a budget to exactly zero by the fraction ``end`` of the phase.

    Args:
        ratio: share of channels to remove, in [0, 1); or
        macs, params: budget kept, in (0, 1]. Exactly one of the three.
        start, end: fractions of the phase: the first channel begins to shrink, the last is exactly zero.
        window: fraction of the phase a channel takes from its value to zero.
        rankings: how many times the channels are ranked between ``start`` and ``end``.
        criterion: ``taylor`` or ``gamma`` (|gamma|).
        balance: exponent of the layer's mean score each score is divided by; 0 compares layers by raw scores, 1 only
            within their layer.
        memory: of the running mean of the scores, as a fraction of the phase.
        max_layer_ratio: most of a layer that may go, in (0, 1].
        select: further options of `slim.select` (min_channels, round_to, ignore, overrides, strategy).
    """

    exact_zeros = True

    def __init__(self, *, ratio: float | None = None, macs: float | None = None, params: float | None = None,
                 start: float = 0.1, end: float = 0.5, window: float = 0.05, rankings: int = 40,
                 criterion: str = "taylor", balance: float = 1.0, memory: float = 0.02, max_layer_ratio: float = 0.9,
                 norms: str = "batch", select: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        given = {k: v for k, v in (("ratio", ratio), ("macs", macs), ("params", params)) if v is not None}
        if len(given) != 1:
            raise SlimError(
                f"target needs exactly one budget of ratio, macs, params. Got {given or 'none'}. "
                "Set penalty.ratio, penalty.macs or penalty.params."
            )
        ((self.kind, self.budget),) = given.items()
        inside = 0 <= self.budget < 1 if self.kind == "ratio" else 0 < self.budget <= 1
        if not inside:
            bounds = "[0, 1)" if self.kind == "ratio" else "(0, 1]"
            raise SlimError(f"{self.kind} must be in {bounds}. Got {self.kind}={self.budget}. Set penalty.{self.kind}.")
        if not (start >= 0 and window > 0 and start + window <= end <= 1):
            raise SlimError(
                "target needs 0 <= start, 0 < window and start + window <= end <= 1, fractions of the phase. "
                f"Got start={start}, window={window}, end={end}. Set penalty.start, penalty.window, penalty.end."
            )
        if criterion not in CRITERIA:
            raise SlimError(f"criterion must be one of {', '.join(CRITERIA)}. Got criterion={criterion}. "
                            "Set penalty.criterion.")  # fmt: skip
        self.start, self.end, self.window, self.rankings = start, end, window, rankings
        self.criterion, self.balance, self.memory, self.norms = criterion, balance, memory, norms
        self.max_layer_ratio, self.select = max_layer_ratio, dict(select or {})
        self._progress = Progress("target")
        self._gammas: Gammas
        self._graph: ChannelGraph

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self._find(model, graph)
        state = self._progress.attach(total_steps)
        self._first = int(self.start * total_steps)
        self._window = max(1, round(self.window * total_steps))
        self._last = max(self._first, int(self.end * total_steps) - self._window)
        self._moments = {round(s) for s in np.linspace(self._first, self._last, max(2, self.rankings))}
        n = len(self._gammas)
        device = self._gammas.device
        self._score = torch.zeros(n, device=device)
        self._left = torch.full((n,), torch.inf, device=device)
        if state:
            self._restore(state)

    def before_step(self, lr: float) -> None:
        """Note the scores; no gradient for what is already zero."""
        step = self._progress.before_step()
        g = self._gammas
        grads = [w.grad if w.grad is not None else torch.zeros_like(w) for w in g.weights]
        if self.criterion == "taylor" and step <= self._last:
            effect = g.flat() * torch.cat(grads)
            if g.biases:
                shifts = [b.grad if b.grad is not None else torch.zeros_like(b) for b in g.biases]
                effect[self._bias_entries] += torch.cat([b.detach() for b in g.biases]) * torch.cat(shifts)
            self._score.lerp_(effect.square_(), 1 / (1 + self.memory * self._progress.total))
        if step >= self._first:
            alive = (self._left > 1).float()
            torch._foreach_mul_(grads, g.views(alive))
            if g.biases:
                shifts = [b.grad if b.grad is not None else torch.zeros_like(b) for b in g.biases]
                torch._foreach_mul_(shifts, g.bias_views(alive[self._bias_entries]))

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Rank when it is time; then one step down for the channels on their way to zero."""
        step = self._progress.step
        if step in self._moments:
            self._rank(self._share(step))
        if step >= self._first:
            g = self._gammas
            # On its way: a straight line that ends at zero in `left` steps. Untouched: left = inf, factor exactly 1.
            factor = 1 - self._left.reciprocal()
            torch._foreach_mul_(g.weights, g.views(factor))
            if g.biases:
                torch._foreach_mul_(g.biases, g.bias_views(factor[self._bias_entries]))
            self._left.sub_(1).clamp_(min=1)
        self._progress.step += 1

    def value(self) -> Tensor:
        """Sum of |gamma| still on its way to zero: 0 when the network is ready."""
        return torch.where(torch.isinf(self._left), 0.0, self._gammas.flat().abs()).sum()

    def removed(self) -> np.ndarray:
        """Bool ``(n_groups,)``: the channel groups that are exactly zero."""
        gone = np.zeros(len(self._graph), bool)
        gone[self._owned] = True
        groups = self._gammas.groups
        alive = groups[(self._gammas.flat() != 0).cpu().numpy() & (groups >= 0)]
        gone[alive] = False
        return gone

    def state_dict(self) -> dict[str, Any]:
        """Step, running scores and the way left to zero of every entry."""
        return {**self._progress.state(), "score": self._score.clone(), "left": self._left.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)
        if hasattr(self, "_left"):
            self._restore(state)

    def summary(self) -> dict[str, float]:
        """``zero``: share of gammas at zero; ``ready``: 1 when the cut costs nothing."""
        zero = float((self._gammas.flat() == 0).float().mean())
        done = self._progress.step > self._last + self._window
        return {"zero": zero, "ready": float(done and float(self.value()) == 0)}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Always reaches zero, whatever the learning rate, unless the phase has too few steps for a window."""
        median = float(self._gammas.flat().abs().median())
        line = (
            f"target: {self.kind}={self.budget:g} will be at exactly zero after {self._last + self._window} of "
            f"{self._progress.total} steps, ranked {len(self._moments)} times."
        )
        return Forecast(float("inf"), median, True, line)

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """See `Penalty.resize`."""
        raise NotImplementedError

    def _find(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._graph = graph
        self._gammas = g = collect(model, graph, norms=self.norms)
        self._bias_entries = torch.as_tensor(g.bias_entries, device=g.device)
        self._owned = np.unique(g.groups[g.groups >= 0])

    def _share(self, step: int) -> float:
        u = (step - self._first + 1) / (self._last - self._first + 1)
        return 1 - (1 - min(1.0, u)) ** 3

    def _restore(self, state: dict[str, Any]) -> None:
        if len(state["left"]) != len(self._gammas):
            raise SlimError(
                f"a state must fit the network. Got {len(state['left'])} gammas for {len(self._gammas)}. "
                "Rebuild the network with the checkpoint's plan before loading."
            )
        self._score.copy_(state["score"])
        self._left.copy_(state["left"])

    def _scores(self) -> np.ndarray:
        """Score of every group: entries over their layer's mean, summed over the group's members."""
        g = self._gammas
        raw = (self._score if self.criterion == "taylor" else g.flat().abs()).double().cpu().numpy()
        sizes = np.array(g.sizes)
        mean = np.bincount(g.layers, raw) / sizes
        entry = raw / np.maximum(mean[g.layers], 1e-300) ** self.balance
        own = g.groups >= 0
        total = np.bincount(g.groups[own], entry[own], minlength=len(self._graph))
        count = np.bincount(g.groups[own], minlength=len(self._graph))
        return total / np.maximum(count, 1)

    def _rank(self, share: float) -> None:
        from slim.criteria import Scores
        from slim.select import select_groups

        g, graph = self._gammas, self._graph
        values = self._scores()
        settled = np.zeros(len(graph), bool)
        own = g.groups >= 0
        left = self._left.cpu().numpy()
        settled[g.groups[own & (left <= 1)]] = True
        values[settled] = -1.0
        counts = np.bincount(g.groups[own], minlength=len(graph))
        budget = self.budget * share if self.kind == "ratio" else 1 - (1 - self.budget) * share
        selection = select_groups(
            graph,
            Scores(values, counts > 0, counts, self.criterion),
            **{self.kind: budget},
            max_layer_ratio=self.max_layer_ratio,
            **self.select,
        )
        doomed = np.zeros(len(g), bool)
        doomed[own] = (selection.removed | settled)[g.groups[own]]
        fresh = np.where(doomed, np.minimum(left, self._window), np.inf)
        self._left.copy_(torch.as_tensor(fresh))
