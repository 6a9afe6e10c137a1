"""What makes a cut network right without training, each step kept only where it helps on held-out data.

Three steps. :func:`absorb` moves the constants of removed channels into the layers that read them, before the cut;
:func:`least_squares` fits those layers' weights to what they made before it; :func:`recalibrate` measures the BatchNorm
statistics afresh, after it. None is sure to help: a living channel is no constant, a few samples may tell little about
many weights, and statistics of a few batches are worse than the running ones where the cut took nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.channels import Plan, unwrap
from slim.channels import rebuild as rebuilt
from slim.criteria.isolated import isolated
from slim.errors import SlimError
from slim.recovery.absorb import absorb as absorbed
from slim.recovery.absorb import constants
from slim.recovery.least_squares import Refit
from slim.recovery.least_squares import least_squares as fitted
from slim.recovery.recalibrate import recalibrate as recalibrated
from slim.recovery.recalibrate import statistics
from slim.recovery.saved import Saved, put_back, saved

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Evaluate = Callable[[nn.Module], float]
Batches = Iterable[Any] | Callable[[], Iterable[Any]] | None


@dataclass(frozen=True)
class Step:
    """What became of one step; ``before`` and ``after`` as ``evaluate`` gave them, None where it did not run."""

    name: str  # "absorb", "least_squares" or "recalibrate"
    before: float | None
    after: float | None
    kept: bool
    reason: str

    def __str__(self) -> str:
        figures = "" if self.after is None or self.before is None else f", {self.before:.4f} to {self.after:.4f}"
        return f"{self.name}: {'kept' if self.kept else 'not kept'}{figures} ({self.reason})"


@dataclass(frozen=True)
class Recovered:
    """The thin network, and the steps that were asked for, in their order."""

    network: nn.Module
    steps: tuple[Step, ...]


def recover(
    network: nn.Module,
    removed: Plan | npt.NDArray[np.bool_],
    graph: ChannelGraph,
    *,
    absorb: bool = True,
    least_squares: int = 0,
    batches: Batches = None,
    count: int = 100,
    evaluate: Evaluate | None = None,
    seed: int = 0,
    example_inputs: Any = None,
    inputs: Callable[[Any], tuple[Any, ...]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    rebuild: Callable[[nn.Module], nn.Module] | None = None,
) -> Recovered:
    """Cut ``network`` and make it right again: absorb, least squares, recalibrate; what does not help is taken back.

    Absorbing is kept when the thin network is no worse for it: on a tie it computes nearer to what the whole network
    did. The others are kept only when the network is better for them: on a tie the weights and statistics of the
    training stay, which saw more data. So the result is never worse than the bare cut on what ``evaluate`` looks at.

    The network's modes and all generators are as before when this returns; ``evaluate`` runs in eval mode, without
    gradients, seeded alike each time. In distributed training every process must evaluate and calibrate on the same
    data, or hand in results that are the same everywhere.

    Args:
        network: before the cut. Not changed, unless ``rebuild`` is given.
        removed: the plan, or the bool mask ``(n_groups,)`` it is made from.
        graph: of ``network``.
        absorb: try that step.
        least_squares: batches to fit weights on; 0: that step is not tried.
        batches: as trained on, augmentation included, for weights and statistics; or what returns them. None: these
            two are not tried.
        count: batches to average statistics over; 0: that step is not tried.
        evaluate: figure of a network, higher is better, on held-out data (on training data where none is held out). It
            gets copies of ``network`` that were cut, and the thin network itself. None: every step is kept unseen.
        seed: of the generators while batches are read and networks evaluated.
        example_inputs: for :func:`absorb`, where the graph does not know what the network takes.
        inputs: turns a batch into positional arguments, as in :func:`recalibrate`.
        forward: runs a network on a batch, as in :func:`recalibrate`.
        rebuild: makes the thin network, for surgery in the middle of training:
            ``lambda network: slim.rebuild(network, plan, in_place=True, optimizer=optimizer)``. It gets ``network``
            itself, into which the constants were moved where that helps. By default a new network is made.

    Raises:
        SlimError: plan, mask or batches do not fit the network.

    >>> from slim.channels import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> graph = trace(net, torch.zeros(1, 3, 8, 8))
    >>> data = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    >>> found = recover(net, np.arange(len(graph)) == 3, graph, batches=data, evaluate=lambda net: 0.5)
    >>> [str(step) for step in found.steps]
    ['absorb: kept, 0.5000 to 0.5000 (no worse)', 'recalibrate: not kept, 0.5000 to 0.5000 (no better; 1 batches)']
    """
    network = unwrap(network)
    plan = removed if isinstance(removed, Plan) else graph.plan(removed)
    figure = _Figure(evaluate, seed)
    data = _Data(_for_two(batches), seed, inputs, forward)
    steps: list[Step] = []
    refitted: dict[str, Tensor] = {}
    whole = constants(network)
    try:
        if absorb:
            steps.append(_try_absorb(network, removed, plan, graph, figure, example_inputs))
        if batches is not None and least_squares:
            step, refitted = _try_least_squares(network, plan, whole, data, least_squares, _known(steps), figure)
            steps.append(step)
        thin = rebuilt(network, plan) if rebuild is None else rebuild(network)
    finally:
        if rebuild is None:
            put_back(whole)
    stored = _tensors(thin)
    put_back([(stored[name], values) for name, values in refitted.items()])
    if batches is not None and count:
        steps.append(_try_recalibrate(thin, lambda: data.recalibrate(thin, count), _known(steps), figure))
    return Recovered(thin, tuple(steps))


def _known(steps: list[Step]) -> float | None:
    """The figure of the network as the last step that was evaluated has left it."""
    return next((s.after if s.kept else s.before for s in reversed(steps) if s.before is not None), None)


def _try_absorb(
    network: nn.Module,
    removed: Plan | npt.NDArray[np.bool_],
    plan: Plan,
    graph: ChannelGraph,
    figure: _Figure,
    example_inputs: Any,
) -> Step:
    """Absorb in ``network`` itself and put its constants back where that does not help.

    Never more than one dense and one thin network are held while one of them is evaluated.
    """
    if plan.is_identity:
        return Step("absorb", None, None, False, "nothing was removed")
    if example_inputs is None and graph.inputs is None:
        return Step("absorb", None, None, False, "the graph was traced on inputs that are not plain tensors")
    before = None if figure.evaluate is None else figure(rebuilt(network, plan))
    saved = constants(network)
    absorbed(network, removed, graph, example_inputs=example_inputs, in_place=True)
    if not _finite(constants(network)):
        put_back(saved)
        return Step("absorb", before, before, False, "it left numbers that are none")
    if before is None:
        return Step("absorb", None, None, True, "not evaluated")
    after = figure(rebuilt(network, plan))
    if after >= before or math.isnan(before):
        return Step("absorb", before, after, True, "no worse")
    put_back(saved)
    return Step("absorb", before, after, False, "worse")


def _try_least_squares(
    network: nn.Module, plan: Plan, whole: Saved, data: _Data, count: int, known: float | None, figure: _Figure
) -> tuple[Step, dict[str, Tensor]]:
    """Refit a copy that is cut; returns what became of it, and its new values by name.

    ``whole`` are the constants of ``network`` before anything was absorbed into it: what is fitted is what it said
    then. ``known`` is the figure of the copy where it was evaluated before.
    """
    if plan.is_identity:
        return Step("least_squares", None, None, False, "nothing was removed"), {}
    thin = rebuilt(network, plan)
    before = figure(thin) if known is None and figure.evaluate is not None else known
    old = {name: tensor.detach().clone() for name, tensor in _tensors(thin).items()}
    absorbed_into = saved(tensor for tensor, _ in whole)
    put_back(whole)
    try:
        found = data.least_squares(thin, network, plan, count)
    finally:
        put_back(absorbed_into)
    changed = {name: t.detach() for name, t in _tensors(thin).items() if not torch.equal(t, old[name])}
    layers = f"{sum(each.kept for each in found)} of {len(found)} layers gained on samples held out"
    if before is None:
        return Step("least_squares", None, None, bool(changed), f"not evaluated; {layers}"), changed
    after = figure(thin)
    if changed and (after > before or (math.isnan(before) and not math.isnan(after))):
        return Step("least_squares", before, after, True, f"better; {layers}"), changed
    return Step("least_squares", before, after, False, f"no better; {layers}"), {}


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _try_recalibrate(thin: nn.Module, measure: Callable[[], int], known: float | None, figure: _Figure) -> Step:
    """Recalibrate ``thin`` in place by ``measure``, and put the statistics back where that does not help.

    ``known`` is the figure of ``thin`` where it was evaluated before.
    """
    saved = statistics(thin)
    if not saved:
        return Step("recalibrate", None, None, False, "there are no running statistics")
    before = figure(thin) if known is None and figure.evaluate is not None else known
    used = measure()
    if not _finite(statistics(thin)):
        put_back(saved)
        return Step("recalibrate", before, before, False, "it left numbers that are none")
    if before is None:
        return Step("recalibrate", None, None, True, f"not evaluated; {used} batches")
    after = figure(thin)
    if after > before or (math.isnan(before) and not math.isnan(after)):
        return Step("recalibrate", before, after, True, f"better; {used} batches")
    put_back(saved)
    return Step("recalibrate", before, after, False, f"no better; {used} batches")


def _for_two(batches: Batches) -> Batches:
    """What two steps can read: an iterator gives both what it has from where it stands."""
    if not isinstance(batches, Iterator):
        return batches
    copies = iter(tee(batches))
    return lambda: next(copies)


@dataclass(frozen=True)
class _Data:
    """Batches, and how a network runs on them."""

    batches: Batches
    seed: int
    inputs: Callable[[Any], tuple[Any, ...]] | None
    forward: Callable[[nn.Module, Any], Any] | None

    def _given(self) -> Iterable[Any]:
        return self.batches() if callable(self.batches) else self.batches or ()

    def recalibrate(self, thin: nn.Module, count: int) -> int:
        return recalibrated(thin, self._given(), count, seed=self.seed, inputs=self.inputs, forward=self.forward)

    def least_squares(self, thin: nn.Module, dense: nn.Module, plan: Plan, count: int) -> list[Refit]:
        return fitted(thin, dense, plan, self._given(), count, seed=self.seed, inputs=self.inputs, forward=self.forward)


def _finite(tensors: Saved) -> bool:
    """Whether all numbers are: a metric may not show it, as NaN has a largest entry like anything else."""
    return all(bool(tensor.isfinite().all()) for tensor, _ in tensors)


class _Figure:
    """A caller's evaluation, in eval mode, without gradients, with generators of its own."""

    def __init__(self, evaluate: Evaluate | None, seed: int) -> None:
        self.evaluate, self._seed = evaluate, seed

    def __call__(self, network: nn.Module) -> float:
        assert self.evaluate is not None
        with isolated(network, self._seed), torch.no_grad():
            figure: Any = self.evaluate(network.eval())
        try:
            return float(figure)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SlimError(
                f"evaluate must return a figure, higher is better. Got {type(figure).__name__}. Return a number."
            ) from error
