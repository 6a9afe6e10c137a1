"""The interface between a sparsity law and a training loop."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from slim.errors import SlimError
from slim.sparsity.forecast import Forecast

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


class Penalty(Protocol):
    """A penalty on the normalization scales, applied around the optimizer's step and never through autograd.

    The loop of any trainer, once per optimizer step (not per micro-batch)::

        penalty.attach(model, graph, total_steps)
        loss.backward()            # unscale and clip here
        penalty.before_step(lr)
        optimizer.step()
        penalty.after_step(lr)
    """

    exact_zeros: bool

    def attach(self, model: nn.Module, graph: ChannelGraph, total_steps: int) -> None:
        """Collect the gammas; start a phase of ``total_steps`` optimizer steps, or continue from a loaded state."""

    def scales(self) -> list[Tensor]:
        """The gammas it acts on, once attached: the model's own parameters."""

    def before_step(self, lr: float) -> None:
        """After backward, unscaling and clipping: add the subgradient to ``gamma.grad``."""

    def after_step(self, lr: float) -> None:
        """After the optimizer's step: update the gammas (proximal laws) and count the step."""

    def value(self) -> Tensor:
        """The penalty now, 0-dim on the gammas' device, without waiting for the device."""

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; a run that loads them continues with the same bits as an uninterrupted one."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load ``state_dict()``, before or after ``attach``."""

    def resize(self, model: nn.Module, graph: ChannelGraph) -> None:
        """Follow an in-place rebuild of the model; ``graph`` is the thin network's."""

    def summary(self) -> dict[str, float]:
        """Numbers for a progress bar (waits for the device): share of gammas at zero, target, ready."""

    def forecast(self, lrs: Sequence[float] | float, momentum: float) -> Forecast:
        """How far the phase can shrink the gammas, known before it begins."""


@runtime_checkable
class Stochastic(Protocol):
    """A law whose scales are random while the network trains: validate, rank and save with the deterministic ones."""

    def use_deterministic_scales(self) -> None:
        """Write the deterministic scales into the model: before a validation, a ranking or a checkpoint."""

    def use_sampled_scales(self) -> None:
        """Write the sampled scales back, bit for bit, so that training continues unchanged."""


def is_law(value: Any) -> bool:
    """Whether ``value`` is a law: no class of laws, and no name of one."""
    methods = ("attach", "before_step", "after_step", "scales")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)


def check_methods(law: Any, name: str) -> None:
    """Check that a law called ``name`` has all methods of :class:`Penalty`; the protocol's own do nothing.

    Raises:
        SlimError: It names those that are missing.
    """
    methods = {name: each for name, each in vars(Penalty).items() if inspect.isfunction(each) and name[0] != "_"}
    found = {name: getattr(law, name, None) for name in methods}
    missing = [key for key, own in found.items() if not callable(own) or getattr(own, "__func__", own) is methods[key]]
    if missing:
        raise SlimError(
            "A law must have all methods of slim.sparsity.Penalty. "
            f"Got {name} without {', '.join(missing)}. Define them."
        )
