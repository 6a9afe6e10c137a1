"""Shrink exactly the channels that the budget will remove to zero: a controller without a lam to tune.

L1 shrinks every gamma, and if too few reach zero, the cut removes channels that still matter. This law knows the
budget. On a cubic schedule (Zhu & Gupta 2017, arXiv:1710.01878) it asks `slim.select` which channels a
growing part of the budget would remove, scales their gamma and beta down to exactly zero over a short window, and lets
the others train without penalty. A channel that ranks higher again before it reached zero is released.

The ranking uses data at no extra cost: a running mean of the square of
sum(gamma * d loss/d gamma + beta * d loss/d beta) over the channel group, the first-order effect of removing it
(Molchanov et al. 2019, arXiv:1906.10771, gate after the normalization; equation 8 for the sum).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.channels import plan_of
from slim.criteria import Scores
from slim.errors import SlimError, expect_number, expect_whole
from slim.sparsity.dense_budget import DenseBudget
from slim.sparsity.forecast import Forecast
from slim.sparsity.gammas import Gammas, check_norms, collect_gammas, member_table
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
        power: of the schedule, above 0: 1 - (1 - u)^power of the budget is due after a fraction u of the
            time between ``start`` and ``end``. 1 is linear, 3 cubic.
        window: fraction of the phase a channel takes from its value to zero.
        rankings: how many times the channels are ranked between ``start`` and ``end``.
        criterion: ``taylor`` or ``gamma`` (|gamma|).
        balance: exponent of the layer's mean score each score is divided by; 0 compares layers by raw scores, 1 only
            within their layer. Unless given 1 for a budget of MACs, of which raw scores leave the early layers more
            than their share, else 0 (measured: experiments/nocliff).
        memory: of the running mean of the scores, as a fraction of the phase.
        max_layer_ratio: most of a layer that may go, in (0, 1].
        select: further options of `slim.select` (min_channels, round_to, ignore, overrides, strategy).
    """

    exact_zeros = True

    def __init__(self, *, ratio: float | None = None, macs: float | None = None, params: float | None = None,
                 start: float = 0.3, end: float = 0.7, power: float = 3.0, window: float = 0.05, rankings: int = 40,
                 criterion: str = "taylor", balance: float | None = None, memory: float = 0.02,
                 max_layer_ratio: float = 0.9, norms: str = "batch",
                 select: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        self.budget = DenseBudget({"ratio": ratio, "macs": macs, "params": params}, max_layer_ratio, dict(select or {}))
        if not (start >= 0 and window > 0 and start + window <= end + 1e-9 and end <= 1):  # 0.1 + 0.2 > 0.3
            raise SlimError(
                "target needs 0 <= start, 0 < window and start + window <= end <= 1, fractions of the phase. "
                f"Got start={start}, window={window}, end={end}. Set penalty.start, penalty.window, penalty.end."
            )
        if not power > 0:
            raise SlimError(f"power must be above 0. Got power={power}. Set penalty.power to 3.")
        expect_whole("rankings", rankings, 1, "Set penalty.rankings to 40.")
        expect_number("memory", memory, "[0, inf)", "Set penalty.memory to 0.02.")
        if balance is not None:
            expect_number("balance", balance, "[0, inf)", "Set penalty.balance to 0 or 1.")
        check_norms(norms)
        if criterion not in CRITERIA:
            raise SlimError(f"criterion must be one of {', '.join(CRITERIA)}. Got criterion={criterion}. "
                            "Set penalty.criterion.")  # fmt: skip
        self.start, self.end, self.power, self.window, self.rankings = start, end, power, window, rankings
        self.balance = (1.0 if macs is not None else 0.0) if balance is None else balance
        self.criterion, self.memory, self.norms = criterion, memory, norms
        self._progress = Progress("target")
        self._gammas: Gammas
        self._graph: ChannelGraph
        self._notes: tuple[str, ...] = ()

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`."""
        self._collect(model, graph)
        state = self._progress.attach(total_steps)
        self._first = int(self.start * total_steps)
        self._window = max(1, round(self.window * total_steps))
        self._last = max(self._first, int(self.end * total_steps) - self._window)
        self._ranking_steps = {round(s) for s in np.linspace(self._first, self._last, max(2, self.rankings))}
        n = len(self._gammas)
        device = self._gammas.device
        self._score = torch.zeros(n, dtype=torch.float32, device=device)
        self._steps_left = torch.full((n,), torch.inf, device=device)
        if state:
            self._restore(state)  # and the dense network with it, of which layers may be gone
        else:
            self.budget.set_dense(graph, len(self._gammas))
            self._select(1.0)  # a budget out of reach is an error or a note before training, not after

    def scales(self) -> list[Tensor]:
        """See `Penalty.scales`."""
        self._progress.check_attached()
        return list(self._gammas.weights)

    def before_step(self, lr: float) -> None:
        """Accumulate the scores; zero the gradient of scales that are already zero."""
        step = self._progress.before_step()
        g = self._gammas
        grads = [w.grad if w.grad is not None else torch.zeros_like(w) for w in g.weights]
        if self.criterion == "taylor" and step <= self._last:
            effect = g.flat().float() * torch.cat(grads).float()  # in half precision its square would be 0
            if g.biases:
                shifts = [b.grad if b.grad is not None else torch.zeros_like(b) for b in g.biases]
                biases = torch.cat([b.detach() for b in g.biases]).float()
                effect[self._bias_entries] += biases * torch.cat(shifts).float()
            if self._shared:
                # Members of a group go together: their effects add up, signs and all, before the square.
                effect = torch.cat([effect, effect.new_zeros(1)])[self._table].sum(1)[self._member_of]
            self._score.lerp_(effect.square_(), 1 / (1 + self.memory * self._progress.total))
        if step >= self._first:
            alive = (self._steps_left > 1).float()
            torch._foreach_mul_(grads, g.views(alive))
            if g.biases:
                shifts = [b.grad if b.grad is not None else torch.zeros_like(b) for b in g.biases]
                torch._foreach_mul_(shifts, g.bias_views(alive[self._bias_entries]))

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Rank at a ranking step; then shrink the selected channels by one step towards zero."""
        step = self._progress.step
        if step in self._ranking_steps:
            self._rank(self._share(step))
        if step >= self._first:
            g = self._gammas
            # Selected: a straight line to zero in `left` steps. Not selected: left = inf, factor exactly 1.
            factor = 1 - self._steps_left.reciprocal()
            torch._foreach_mul_(g.weights, g.views(factor))
            if g.biases:
                torch._foreach_mul_(g.biases, g.bias_views(factor[self._bias_entries]))
            self._steps_left.sub_(1).clamp_(min=1)
        self._progress.step += 1

    def value(self) -> Tensor:
        """Sum of |gamma| over the selected scales that are not zero yet: 0 when the network is ready."""
        self._progress.check_attached()
        return torch.where(torch.isinf(self._steps_left), 0.0, self._gammas.flat().abs()).sum()

    def removed(self) -> npt.NDArray[np.bool_]:
        """Bool ``(n_groups,)``: the channel groups that are exactly zero and may go now.

        Of blocks that must lose equally many (grouped convolutions) as many as each can spare.
        """
        gone = np.zeros(len(self._graph), bool)
        gone[self._owned] = True
        groups = self._gammas.groups
        alive = groups[(self._gammas.flat() != 0).cpu().numpy() & (groups >= 0)]
        gone[alive] = False
        gone &= self._graph.prunable
        spare = -1
        while spare != gone.sum():  # a block may belong to two balances
            spare = gone.sum()
            for balance in self._graph.balance:
                count = min(int(gone[block].sum()) for block in balance.blocks)
                for block in balance.blocks:
                    gone[block[gone[block]][count:]] = False
        return gone

    def state_dict(self) -> dict[str, Any]:
        """Step, running scores, steps left to zero of every entry, and the size of the dense network."""
        state = self._progress.state()
        tensors = {"score": self._score.clone(), "left": self._steps_left.clone()}
        return {**state, **tensors, **self.budget.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)
        if hasattr(self, "_steps_left"):
            self._restore(state)

    def summary(self) -> dict[str, float]:
        """Shares of the dense network, and ``ready``: 1 when nothing is left to shrink.

        ``zero`` of the scales are zero or gone, ``target`` will be, ``macs`` remain after a cut now.
        """
        self._progress.check_attached()
        inside = torch.as_tensor(self._gammas.groups >= 0, device=self._gammas.device)
        zero = inside & (self._gammas.flat() == 0)
        shrinking = inside & ~torch.isinf(self._steps_left)
        total, gone = self.budget.dense["scales"], self.budget.removed_share(len(self._gammas))
        done = self._progress.step >= self._last + self._window and not bool((shrinking & ~zero).any())
        return {
            "zero": gone + float(zero.sum()) / total,
            "target": self.budget.amount if self.budget.kind == "ratio" else gone + float(shrinking.sum()) / total,
            "macs": self._graph.macs(self.removed()) / self.budget.dense["macs"],
            "ready": float(done),
        }

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """The law reaches zero at any learning rate; only floors can keep it from the whole budget."""
        self._progress.check_attached()
        median = float(self._gammas.flat().abs().median())
        line = (
            f"target: {self.budget.kind}={self.budget.amount:g} will be at exactly zero after "
            f"{self._last + self._window} of {self._progress.total} steps, ranked {len(self._ranking_steps)} times."
        )
        if self._notes:
            line += f" Floors and balance keep it from the whole budget: {' '.join(self._notes)}"
        line += self._too_late(lrs)
        return Forecast(float("inf"), median, not self._notes, line)

    def _too_late(self, lrs: Sequence[float] | float) -> str:
        """A sentence where the learning rate is all but gone when the last channels go: the rest cannot make up for it.

        Measured in experiments/paper: 0.4 points on MNIST at a hundredth. At a tenth it depends on what follows.
        """
        if isinstance(lrs, int | float) or not lrs or self._last + self._window >= len(lrs):
            return ""
        highest, then = max(lrs), lrs[self._last + self._window - 1]
        if then >= 0.05 * highest:
            return ""
        falls = max(step for step, lr in enumerate(lrs) if lr >= 0.5 * highest) / len(lrs)
        return (
            f" The learning rate is then {then / highest:.2g} of its highest, too low for the rest to make up for what "
            f"goes. Set penalty.end to {falls:.2f}, before it falls, and penalty.start to less."
        )

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """See `Penalty.resize`: the state is sliced like the gammas; the budget stays that of the dense network."""
        before = dict(zip(self._gammas.names, zip(self._gammas.sizes, self._kept, strict=True), strict=True))
        scores = dict(zip(self._gammas.names, self._gammas.views(self._score), strict=True))
        lefts = dict(zip(self._gammas.names, self._gammas.views(self._steps_left), strict=True))
        self._collect(model, graph)
        score, left = [], []
        for name, size, now in zip(self._gammas.names, self._gammas.sizes, self._kept, strict=True):
            old_size, then = before[name]
            stays = np.arange(old_size) if now is None else now
            if now is not None and then is not None:
                stays = np.searchsorted(then, now)
            if len(stays) != size:
                raise SlimError(f"a penalty follows a rebuild made by slim.rebuild. Got {name} with {size} channels, "
                                f"{len(stays)} in its plan. Use slim.rebuild(model, plan, in_place=True).")  # fmt: skip
            pick = torch.as_tensor(stays, device=self._gammas.device)
            score.append(scores[name][pick])
            left.append(lefts[name][pick])
        self._score, self._steps_left = torch.cat(score), torch.cat(left)

    def _collect(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._graph = graph
        self._gammas = g = collect_gammas(model, graph, norms=self.norms)
        self._bias_entries = g.bias_index
        table, member_of, counts = member_table(g.groups)
        self._shared = bool((counts > 1).any())
        self._table = torch.as_tensor(table, device=g.device)
        self._member_of = torch.as_tensor(member_of, device=g.device)
        self._owned = np.unique(g.groups[g.groups >= 0])
        plan = plan_of(model)
        keeps = [plan.axes.get((name, 0)) if plan is not None else None for name in g.names]
        self._kept = [None if keep is None else keep.kept for keep in keeps]

    def _share(self, step: int) -> float:
        u = (step - self._first + 1) / (self._last - self._first + 1)
        share: float = 1 - (1 - min(1.0, u)) ** self.power
        return share

    def _restore(self, state: dict[str, Any]) -> None:
        if len(state["left"]) != len(self._gammas):
            raise SlimError(
                f"a state must fit the network. Got {len(state['left'])} gammas for {len(self._gammas)}. "
                "Rebuild the network with the checkpoint's plan before loading."
            )
        self._score.copy_(state["score"])
        self._steps_left.copy_(state["left"])
        self.budget.load(state)

    def _scores(self) -> npt.NDArray[np.float64]:
        """Score of every group, its members' over their layers' means to the power ``balance``.

        What removing the group costs; for a ratio, which counts scales, divided by how many scales it removes.
        """
        g = self._gammas
        raw = (self._score if self.criterion == "taylor" else g.flat().abs()).double().cpu().numpy()
        # Only what is alive counts in a layer's mean, so that removing zeros for good changes nothing.
        alive = (self._steps_left > 1).cpu().numpy()
        mean = np.bincount(g.layers, raw * alive) / np.maximum(np.bincount(g.layers, alive), 1)
        entry = raw / np.maximum(mean[g.layers] ** self.balance, 1e-300)
        own = g.groups >= 0
        total = np.bincount(g.groups[own], entry[own], minlength=len(self._graph)).astype(np.float64)
        count = np.maximum(np.bincount(g.groups[own], minlength=len(self._graph)), 1)
        if self.criterion == "taylor":
            total = total / count  # every member holds the effect of all
        return total / count if self.budget.kind == "ratio" else total

    def _rank(self, share: float) -> None:
        groups = self._gammas.groups
        own = groups >= 0
        shrinking = np.zeros(len(groups), bool)
        shrinking[own] = self._select(share)[groups[own]]
        left = self._steps_left.cpu().numpy()
        self._steps_left.copy_(torch.as_tensor(np.where(shrinking, np.minimum(left, self._window), np.inf)))

    def _select(self, share: float) -> npt.NDArray[np.bool_]:
        """Bool ``(n_groups,)``: what is removed when ``share`` of the budget is due; what is zero stays zero."""
        g, graph = self._gammas, self._graph
        own = g.groups >= 0
        at_zero = np.zeros(len(graph), bool)
        at_zero[g.groups[own & (self._steps_left <= 1).cpu().numpy()]] = True
        counts = np.bincount(g.groups[own], minlength=len(graph))
        values = np.where(at_zero, -1.0, self._scores())
        scores = Scores(values, counts > 0, counts, self.criterion)
        selection = self.budget.select(graph, scores, share, len(g))
        self._notes = selection.notes
        removed: npt.NDArray[np.bool_] = selection.removed | at_zero
        return removed
