"""One cut of a module's network: check, recover, rebuild in place, with everything that follows the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.channels import ChannelGraph, Plan, mask, rebuild
from slim.channels.meta_forward import call_arguments
from slim.errors import RunFailed, SlimError
from slim.lightning.calibration import Calibration
from slim.lightning.example import eager
from slim.lightning.followers import followers
from slim.lightning.network import Network
from slim.lightning.options import Recovery
from slim.lightning.surgery import after_surgery, broadcast_removed, cut_in_place, synchronize
from slim.lightning.traced import TracedNetwork
from slim.recovery import Step, recover
from slim.selection import Selection

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Cut:
    """What one cut did.

    Attributes:
        selection: What went, what was asked for and achieved, of the dense network.
        plan: From the network before this cut to the one after it.
        before: ``macs``, ``params`` and ``channels`` (normalization scales) before it.
        after: The same after it.
        difference: Largest difference between the outputs of the masked and the rebuilt network, relative to them; nan
            where the network draws random numbers and it could not be measured.
        recovery: The steps of :func:`slim.recovery.recover`, and whether they were kept.
        epochs: Epochs done when it came; ``None`` outside of a fit.
    """

    selection: Selection
    plan: Plan
    before: Mapping[str, int]
    after: Mapping[str, int]
    difference: float
    recovery: Sequence[Any] = ()
    epochs: int | None = None

    def __str__(self) -> str:
        kept = ", ".join(f"{self.after[key] / max(1, self.before[key]):.1%} of the {key}" for key in self.before)
        when = "" if self.epochs is None else f"after {self.epochs} epochs: "
        steps = "".join(f"; {step}" for step in self.recovery)
        notes = "".join(f" {note}" for note in self.selection.notes)
        return f"pruning: {when}{kept} stay (plan {self.plan.hash[:12]}){steps}.{notes}"


def figures(graph: ChannelGraph) -> dict[str, int]:
    """Size of a network: MACs on the example inputs, parameters, channels."""
    channels = sum(len(scale.groups) for scale in graph.scales) or len(graph)
    return {"macs": graph.macs(), "params": graph.params(), "channels": channels}


@dataclass(frozen=True)
class CutContext:
    """The network of one cut, and what must follow it.

    Attributes:
        module: Whose network it is.
        traced: The network.
        calibration: Batches for ranking and recovery; false where there are none.
        trainer: Whose optimizers, averaged copies and processes follow; ``None`` outside of a fit.
        copies: Further networks of the module with the same architecture.
    """

    module: pl.LightningModule
    traced: TracedNetwork
    calibration: Calibration
    trainer: pl.Trainer | None
    copies: Sequence[Network] = ()

    def ensure_example(self) -> None:
        """Record the network's inputs from the first batch where none are known.

        Raises:
            SlimError: There is no batch.
        """
        if self.traced.example is not None:
            return
        if not self.calibration:
            raise SlimError("A cut needs to know the network's inputs. Got no example and no batches. Give example=.")
        for batch in self.calibration():
            self.traced.learn_example(self.module, batch)
            return

    @property
    def decides(self) -> bool:
        """Whether this process selects: rank 0 does, for all."""
        return self.trainer is None or self.trainer.is_global_zero

    def of_rank_zero(self, selection: Selection) -> Selection:
        """The selection of rank 0, on every rank; see :func:`broadcast_removed`."""
        removed = broadcast_removed(self.trainer, self.traced.graph, selection.removed)
        return Selection(removed, selection.requested, selection.achieved, selection.notes)

    def networks(self) -> list[nn.Module]:
        """The network and those that are cut alike; see :func:`followers`."""
        return [self.traced.network, *followers(self.trainer, self.module, self.traced.network, self.copies)]


def execute(
    context: CutContext,
    selection: Selection,
    recovery: Recovery,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    exact: bool = True,
    epochs: int | None = None,
) -> Cut:
    """Remove what is selected: check, absorb, rebuild in place, recalibrate, on all networks of ``context``.

    Args:
        context: Where.
        selection: What goes; the same on every rank.
        recovery: What is repaired.
        evaluate: Instead of that of ``recovery``.
        exact: Check first that the masked and the rebuilt network compute the same.
        epochs: For the record.

    Raises:
        RunFailed: They do not; then nothing was cut.
    """
    traced, trainer = context.traced, context.trainer
    plan, before, error = traced.graph.plan(selection.removed), figures(traced.graph), 0.0
    if plan.is_identity:
        return Cut(selection, plan, before, before, error, epochs=epochs)
    if exact:
        error = check_equal(traced.network, plan, traced.example)
    optimizers = [] if trainer is None else trainer.optimizers
    networks, steps = context.networks(), list[tuple[Step, ...]]()

    def rebuild_in_place(thin: nn.Module) -> nn.Module:
        cut_in_place(thin, plan, optimizers)
        return thin

    for network in networks:
        found = recover(
            network,
            selection.removed,
            traced.graph,
            absorb=recovery.absorb,
            least_squares=recovery.least_squares,
            batches=context.calibration if context.calibration else None,
            count=recovery.batches,
            evaluate=evaluate or recovery.evaluate,
            forward=context.calibration.forward,
            rebuild=rebuild_in_place,
        )
        steps.append(found.steps)
    synchronize(trainer, *networks)
    after_surgery(trainer, context.module)
    traced.keep_dense(context.module, networks)
    traced.graph = None
    return Cut(selection, plan, before, figures(traced.graph), error, steps[0], epochs)


def check_equal(network: nn.Module, plan: Plan, example: Any) -> float:
    """Largest difference of outputs of the masked and the rebuilt network, relative to the largest output.

    Raises:
        RunFailed: The two are not the same function.
    """
    with eager(network):
        masked, thin = mask(network, plan), rebuild(network, plan)
        error = difference(masked, thin, example)
        allowed = TOLERANCE.get(next(network.parameters()).dtype, 5e-2)
        random = not error <= allowed and difference(masked, masked, example, seeds=(0, 1)) > 0
    if random:
        rank_zero_warn(
            "The network draws random numbers in eval mode, and other ones when it is thin: that the masked and the "
            "rebuilt network compute the same could not be checked."
        )
        return math.nan
    if not error <= allowed:
        raise RunFailed(
            f"The rebuilt network must compute what the masked one does. Got a relative difference of {error:.2g} in "
            f"its output (allowed: {allowed:g}). Please report the model; nothing was cut."
        )
    return error


@torch.no_grad()
def difference(masked: nn.Module, thin: nn.Module, example: Any, seeds: tuple[int, int] = (0, 0)) -> float:
    """See :func:`check_equal`; on random inputs like ``example``, in eval mode, with ``seeds`` for what they draw."""
    parameter = next(masked.parameters())
    generator = torch.Generator().manual_seed(0)

    def random(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        return tensor.to(parameter.device)

    args, kwargs = call_arguments(tree_map_only(Tensor, random, example))
    outputs = []
    for network, seed in zip((masked.eval(), thin.eval()), seeds, strict=True):
        torch.manual_seed(seed)
        given = copy.deepcopy((args, kwargs))
        outputs.append([leaf for leaf in tree_leaves(network(*given[0], **given[1])) if isinstance(leaf, Tensor)])
    worst = 0.0
    for a, b in zip(*outputs, strict=True):
        if a.numel() and a.is_floating_point():
            a, b = a.double(), b.double()
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)))
    return worst
