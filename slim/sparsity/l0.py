"""L0 by hard concrete gates. Louizos, Welling & Kingma 2018, arXiv:1712.01312, section 2.2.

Every channel group has a random gate z in [0, 1] that multiplies its gammas and betas. The gates live in the penalty,
not in the network: around each optimizer step the law replaces the gated scales by the plain ones and back. So the
structure, state dict and forward pass of the model stay as they were.

    after_step   theta <- gamma; sample z; gamma <- z * theta      (the next forward and backward see the gated scales)
    before_step  gradient of theta = z * gradient of gamma; gradient of log alpha from theta * gradient of gamma;
                 gamma <- theta                                    (the optimizer steps the plain scales)

After the last step, and between `use_deterministic_scales` and `use_sampled_scales`, the gates have their deterministic
value (equation 13), which is exactly zero for closed ones: the network to validate, to rank and to save.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError, expect_whole
from slim.sparsity.forecast import Forecast, round_up
from slim.sparsity.gammas import Gammas, check_norms, collect_gammas, member_table
from slim.sparsity.lam_schedule import LamSchedule
from slim.sparsity.progress import Progress

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

# The paper's beta, gamma and zeta: temperature and the interval the concrete distribution is stretched to.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


class L0:
    """lam * expected number of open gates, one gate per channel group.

    Args:
        lam: cost of an open gate, in units of the loss. The paper divides by the number of images; this does not.
        gate_lr: learning rate of Adam on log alpha.
        open_at_start: probability that a gate is not closed at the start.
        warmup, schedule: see `LamSchedule`.
        norms, prunable_only: which scales, see `collect_gammas`.
        seed: of the gates' own random generator.
    """

    exact_zeros = True

    def __init__(self, lam: float = 1e-4, *, gate_lr: float = 0.02, open_at_start: float = 0.95, warmup: float = 0.0,
                 schedule: str = "constant", norms: str = "batch", prunable_only: bool = True,
                 seed: int = 0) -> None:  # fmt: skip
        if not 0 < open_at_start < 1:
            raise SlimError(f"open_at_start must be in (0, 1). Got open_at_start={open_at_start}. "
                            "Set penalty.open_at_start.")  # fmt: skip
        if not gate_lr > 0:
            raise SlimError(f"gate_lr must be > 0. Got gate_lr={gate_lr}. Set penalty.gate_lr.")
        expect_whole("seed", seed, 0, "Set penalty.seed.")
        check_norms(norms)
        self.lam_schedule = LamSchedule(lam, warmup, schedule)
        self.gate_lr, self.open_at_start, self.seed = gate_lr, open_at_start, int(seed)
        self.norms, self.prunable_only = norms, prunable_only
        self._progress = Progress("l0")
        self._gammas: Gammas

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """See `Penalty.attach`; the first forward already sees sampled gates."""
        known = {id(parameter) for parameter in model.parameters()}
        if hasattr(self, "_theta") and not self._progress.pending and all(id(w) in known for w in self._gammas.weights):
            self._load_plain_scales()  # the same network again; another one is left as it is
        self._collect(model, graph)
        state = self._progress.attach(total_steps)
        device = self._gammas.device
        shift = TEMPERATURE * math.log(-LOW / HIGH)
        start = math.log(self.open_at_start / (1 - self.open_at_start)) + shift
        self._make_gates(torch.full((len(self._table),), start, device=device))
        self._generator = torch.Generator(device).manual_seed(self.seed)
        if state:
            self._restore(state)
        else:
            self._store_plain_scales()
            self.sample_gates()

    def scales(self) -> list[Tensor]:
        """See `Penalty.scales`."""
        self._progress.check_attached()
        return list(self._gammas.weights)

    @torch.no_grad()
    def before_step(self, lr: float) -> None:
        """Step the gates; give the optimizer the plain scales with their own gradients."""
        lam = self.lam_schedule.at(self._progress.before_step(), self._progress.total)
        g = self._gammas
        grads = [w.grad if w.grad is not None else torch.zeros_like(w) for w in g.weights]
        shifts = [b.grad if b.grad is not None else torch.zeros_like(b) for b in g.biases]
        effect = self._theta * torch.cat(grads)
        if shifts:
            effect[self._bias_entries] += self._theta_bias * torch.cat(shifts)
        per_gate = torch.nn.functional.pad(effect, (0, 1))[self._table].sum(1)
        # d z / d log alpha through the stretched sigmoid, 0 where the clamp holds z at 0 or 1.
        inside = (self._z > 0) & (self._z < 1)
        slope = (HIGH - LOW) * self._s * (1 - self._s) / TEMPERATURE * inside
        probability = torch.sigmoid(self._log_alpha - TEMPERATURE * math.log(-LOW / HIGH))
        self._log_alpha.grad = per_gate.float() * slope + lam * probability * (1 - probability)
        self._adam.step()
        torch._foreach_mul_(grads, g.views(self._entry))
        if shifts:
            torch._foreach_mul_(shifts, g.bias_views(self._entry[self._bias_entries]))
        self._load_plain_scales()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Store the stepped scales, sample the next gates; after the last step set the deterministic ones."""
        self._store_plain_scales()
        self._progress.step += 1
        if self._progress.step >= self._progress.total:
            self._s = torch.sigmoid(self._log_alpha.detach())
            self._gate(self._s)
        else:
            self.sample_gates()

    @torch.no_grad()
    def sample_gates(self) -> None:
        """Sample the gates and multiply the model's scales by them."""
        u = torch.rand(len(self._log_alpha), device=self._log_alpha.device, generator=self._generator)
        u.clamp_(1e-6, 1 - 1e-6)
        self._s = torch.sigmoid((u.log() - (1 - u).log() + self._log_alpha) / TEMPERATURE)
        self._gate(self._s)

    def use_deterministic_scales(self) -> None:
        """Multiply the model's scales by the deterministic gates; closed ones are exactly zero."""
        self._gate(torch.sigmoid(self._log_alpha.detach()))

    def use_sampled_scales(self) -> None:
        """Multiply the scales by the gates of the current step (after the last step the deterministic ones)."""
        self._gate(self._s)

    @property
    def lam(self) -> float:
        """Of the next step."""
        return self.lam_schedule.at(self._progress.step, self._progress.total)

    def value(self) -> Tensor:
        """Lam * expected number of open gates."""
        self._progress.check_attached()
        return self.lam * torch.sigmoid(self._log_alpha.detach() - TEMPERATURE * math.log(-LOW / HIGH)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Step, plain scales, sampled gates, Adam's moments and the generator."""
        adam = self._adam.state.get(self._log_alpha, {})
        return {
            **self._progress.state(),
            **{k: getattr(self, "_" + k).detach().clone() for k in ("theta", "theta_bias", "log_alpha", "s")},
            "adam": {k: v.clone() for k, v in adam.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Penalty.load_state_dict`."""
        self._progress.load(state)
        if hasattr(self, "_theta"):
            self._restore(state)

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """Refused: the gates of a run cannot follow a rebuild; cut after the phase."""
        raise SlimError("penalty l0 cannot follow a rebuild during training. Got slim_every with penalty=l0. "
                        "Set slim_every=0, or use penalty=target or prox.")  # fmt: skip

    def summary(self) -> dict[str, float]:
        """``zero``: share of gates whose deterministic value is exactly zero."""
        self._progress.check_attached()
        gates = torch.sigmoid(self._log_alpha.detach()) * (HIGH - LOW) + LOW
        return {"zero": float((gates[self._index] <= 0).float().mean())}

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """Adam moves log alpha by about gate_lr a step: whether that can close a gate in the phase."""
        self._progress.check_attached()
        steps = self._progress.total
        median = float(self._gammas.flat().abs().median())
        # A deterministic gate is closed when sigmoid(log alpha) <= -LOW / (HIGH - LOW).
        distance = float(self._log_alpha.detach().median()) - math.log(-LOW / HIGH)
        reach = self.gate_lr * steps
        line = f"l0: a gate can move by {reach:.3g} over this phase and closes after {distance:.3g}."
        if reach < distance:
            line += f" Too slow to close: set penalty.gate_lr to {round_up(distance / steps)} or more, or train longer."
        return Forecast(reach, median, reach >= distance, line)

    def _collect(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._gammas = g = collect_gammas(model, graph, norms=self.norms, prunable_only=self.prunable_only)
        table, index, _ = member_table(g.groups)
        self._table = torch.as_tensor(table, device=g.device)
        self._index = torch.as_tensor(index, device=g.device)
        self._bias_entries = g.bias_index

    def _make_gates(self, log_alpha: Tensor) -> None:
        self._log_alpha = log_alpha.requires_grad_()
        self._adam = torch.optim.Adam([self._log_alpha], lr=self.gate_lr)

    def _store_plain_scales(self) -> None:
        self._theta = self._gammas.flat()
        biases = self._gammas.biases
        self._theta_bias = torch.cat([b.detach() for b in biases]) if biases else self._theta[:0]

    @torch.no_grad()
    def _load_plain_scales(self) -> None:
        """Write the plain scales into the model."""
        torch._foreach_copy_(self._gammas.weights, self._gammas.views(self._theta))
        if self._gammas.biases:
            torch._foreach_copy_(self._gammas.biases, self._gammas.bias_views(self._theta_bias))

    @torch.no_grad()
    def _gate(self, s: Tensor) -> None:
        """Write the gated scales into the model, with gates from ``s`` in (0, 1)."""
        g = self._gammas
        self._z = (s * (HIGH - LOW) + LOW).clamp(0, 1)
        self._entry = self._z[self._index]
        torch._foreach_copy_(g.weights, g.views(self._theta * self._entry))
        if g.biases:
            torch._foreach_copy_(g.biases, g.bias_views(self._theta_bias * self._entry[self._bias_entries]))

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        if len(state["theta"]) != len(self._gammas):
            raise SlimError(
                f"a state must fit the network. Got {len(state['theta'])} gammas for {len(self._gammas)}. "
                "Resume on the network the run was started with."
            )
        device = self._gammas.device
        self._theta, self._theta_bias = state["theta"].to(device), state["theta_bias"].to(device)
        self._make_gates(state["log_alpha"].to(device).clone())
        if state["adam"]:
            self._adam.state[self._log_alpha] = {k: v.clone() for k, v in state["adam"].items()}
        self._generator.set_state(state["generator"])
        self._s = state["s"].to(device)
        self._gate(self._s)
