"""One cut of a module's network: rank, select, check, recover, rebuild in place, with everything that follows it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim import criteria
from slim.channels import ChannelGraph, Plan, mask, plan_of, rebuild
from slim.criteria import Scores
from slim.errors import RunFailed
from slim.lightning.example import eager, inputs_of
from slim.lightning.traced import TracedNetwork
from slim.selection import Selection, select_groups, select_next_cut

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class Cut:
    """What one cut did.

    Attributes:
        selection: What went, what was asked for and achieved, of the dense network.
        plan: From the network before this cut to the one after it.
        before: ``macs``, ``params`` and ``channels`` (normalization scales) before it.
        after: The same after it.
        difference: Largest difference between the outputs of the masked and the rebuilt network, relative to them.
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


def select(
    traced: TracedNetwork, criterion: Any, budget: Mapping[str, Any], limits: Mapping[str, Any], loader: Any = None
) -> Selection:
    """Select the groups that a budget removes by one global ranking; budget, floors and caps are the dense network's.

    Args:
        traced: The network.
        criterion: Name, function, or a dict with ``name`` and options.
        budget: ``{kind: amount}``.
        limits: Of :func:`slim.select`.
        loader: From a number to that many batches, for criteria that look at data.
    """
    graph = traced.graph
    options = {**limits, **budget}
    with eager(traced.network):
        scores = score(graph, criterion, loader)
        if plan_of(traced.network) is None:
            return select_groups(graph, scores, **options)
        return select_next_cut(traced.dense_graph(real="latency" in budget), graph, scores, **options)


def score(graph: ChannelGraph, criterion: Any, loader: Any = None) -> Scores:
    """Rank the channels; ``loader`` as of :func:`select`."""
    options = dict(criterion) if isinstance(criterion, Mapping) else {"name": criterion}
    name = options.pop("name")
    wants_data = "loader" in inspect.signature(criteria.find(name).rank).parameters
    if wants_data and "loader" not in options and loader is not None:
        count = options.get("batches", 8)
        options["loader"] = loader(count if isinstance(count, int) else 1)
    return criteria.score(graph, name, **options)


def check_equal(network: nn.Module, plan: Plan, example: Any) -> float:
    """Largest difference of outputs of the masked and the rebuilt network, relative to the largest output.

    Raises:
        RunFailed: The two are not the same function.
    """
    with eager(network):
        error = difference(mask(network, plan), rebuild(network, plan), example)
    dtype = next(network.parameters()).dtype
    allowed = TOLERANCE.get(dtype, 5e-2)
    if not error <= allowed:
        raise RunFailed(
            f"The rebuilt network must compute what the masked one does. Got a relative difference of {error:.2g} in "
            f"its output (allowed: {allowed:g}). Please report the model; nothing was cut."
        )
    return error


@torch.no_grad()
def difference(masked: nn.Module, thin: nn.Module, example: Any) -> float:
    """See :func:`check_equal`; on random inputs like ``example``, in eval mode."""
    parameter = next(masked.parameters())
    generator = torch.Generator().manual_seed(0)

    def random(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        return tensor.to(parameter.device)

    inputs = tree_map_only(Tensor, random, example)
    args, kwargs = (
        ((), inputs) if isinstance(inputs, Mapping) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    outputs = []
    for network in (masked.eval(), thin.eval()):
        given = copy.deepcopy((args, kwargs))
        outputs.append([leaf for leaf in tree_leaves(network(*given[0], **given[1])) if isinstance(leaf, Tensor)])
    worst = 0.0
    for a, b in zip(*outputs, strict=True):
        if a.numel() and a.is_floating_point():
            a, b = a.double(), b.double()
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)))
    return worst


class Calibration:
    """Batches for ranking and recovery, and how a network runs on them.

    Args:
        module: Whose step says what the network takes.
        network: The network.
        batches: As the module's training step takes them, or what returns them; default: those of the Trainer.
        trainer: In a fit: its loader, its device, its precision.
    """

    def __init__(
        self, module: pl.LightningModule, network: nn.Module, batches: Batches | None, trainer: pl.Trainer | None
    ) -> None:
        self._module, self._network, self._batches, self._trainer = module, network, batches, trainer

    def __bool__(self) -> bool:
        return self._batches is not None or (self._trainer is not None and self._trainer.train_dataloader is not None)

    def __call__(self) -> Iterator[Any]:
        """The batches, on the network's device; a fresh iteration each time."""
        device = next((p.device for p in self._network.parameters()), torch.device("cpu"))
        if self._batches is not None:
            for batch in self._batches() if callable(self._batches) else self._batches:
                yield move_data_to_device(batch, device)
            return
        assert self._trainer is not None
        loaders = self._trainer.train_dataloader
        states = [(loader, loader.state_dict()) for loader in tree_leaves(loaders) if _resumable(loader)]
        try:
            for batch, *_ in iter(CombinedLoader(loaders, "max_size_cycle")):
                converted = self._trainer.precision_plugin.convert_input(batch)
                converted = self._module._on_before_batch_transfer(converted, dataloader_idx=0)
                yield self._trainer.strategy.batch_to_device(converted, dataloader_idx=0)
        finally:
            for loader, state in states:
                loader.load_state_dict(state)

    def forward(self, network: nn.Module, batch: Any) -> Any:
        """Run the network on what the module's step would give it."""
        args, kwargs = self._inputs(batch)
        with torch.no_grad():
            return network(*args, **kwargs)

    def batches(self, count: int) -> list[Any]:
        """``count`` batches as criteria take them: the network's input, and the target where a batch has one."""
        return list(self._pairs(count))

    def _pairs(self, count: int) -> Iterator[Any]:
        for batch in islice(self(), count):
            args, kwargs = self._inputs(batch)
            target = target_in(batch, (args, kwargs))
            if kwargs:
                yield {**kwargs, **({} if target is None else {"target": target})}
            else:
                yield (args[0], target) if target is not None else args[0]

    def _inputs(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = inputs_of(self._module, self._network, batch)
        floating = next((p.dtype for p in self._network.parameters() if p.is_floating_point()), torch.float32)

        def as_weights(tensor: Tensor) -> Tensor:
            return tensor.detach().to(floating) if tensor.is_floating_point() else tensor

        found: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(Tensor, as_weights, (args, kwargs))
        return found


def target_in(batch: Any, inputs: Any) -> Any:
    """The target in a batch: its second part, or the one tensor that is no input of the network.

    >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> all(target_in(batch, ((x,), {})) is y for batch in ((x, y), {"image": x, "label": y}))
    True
    >>> target_in({"image": x}, ((x,), {})) is None
    True
    """
    if isinstance(batch, list | tuple):
        return batch[1] if len(batch) > 1 else None
    given = [leaf.shape for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    fields = vars(batch) if is_dataclass(batch) else batch
    others = [leaf for leaf in tree_leaves(fields) if isinstance(leaf, Tensor) and leaf.shape not in given]
    return others[0] if len(others) == 1 else None


def _resumable(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def none_removed(graph: ChannelGraph) -> npt.NDArray[np.bool_]:
    """An empty selection: False for every group, (groups,)."""
    return np.zeros(len(graph), dtype=bool)
