"""Surgery by a callback: the global ranking at the end of sparse training, and rebuilds in the middle of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch

from slim.channels import ChannelGraph, Plan, rebuild
from slim.errors import RunFailed
from slim.module import Classifier


class Slimming(pl.Callback):
    """Ranks all gammas globally when training ends; with ``every``, also removes exact zeros while it goes on.

    Args:
        trace: Traces the network; called again after surgery.
        choose: From a graph of the trained network to the plan of the cut; called once, at the end, on the last
            epoch's weights (the best epoch of sparse training is its least sparse one). ``None``: no cut here.
        every: Epochs between two rebuilds in place; 0: none. Channels go whose gammas are all exactly zero, after
            ``absorb`` has moved what their beta contributes into the next layers.
        absorb: Called with the network, the graph and the mask of groups (groups,) before they are removed.
        min_channels: Channels that every layer keeps.

    Attributes:
        plan: The cut, once training has ended.
        history: One entry per rebuild: epoch (1-based), MACs and channel groups left.
    """

    def __init__(
        self,
        trace: Callable[[torch.nn.Module], ChannelGraph],
        *,
        choose: Callable[[ChannelGraph], Plan] | None = None,
        every: int = 0,
        absorb: Callable[[torch.nn.Module, ChannelGraph, npt.NDArray[np.bool_]], None] | None = None,
        min_channels: int = 1,
    ) -> None:
        self._trace = trace
        self._choose = choose
        self._every = every
        self._absorb = absorb
        self._min_channels = min_channels
        self.plan: Plan | None = None
        self.history: list[dict[str, int]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Every ``every`` epochs but the last: rebuild without the zeros, in place."""
        epoch = trainer.current_epoch + 1
        if self._every and epoch % self._every == 0 and epoch < (trainer.max_epochs or 0):
            self._slim(trainer, pl_module, epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        """Rank and plan; the network itself is rebuilt by the prune phase, from the saved weights."""
        if self._choose is not None and trainer.is_global_zero:
            self.plan = self._choose(self._trace(pl_module.network))

    def state_dict(self) -> dict[str, Any]:
        """What has been rebuilt so far."""
        return {"history": [dict(entry) for entry in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self.history = [dict(entry) for entry in state_dict["history"]]

    def _slim(self, trainer: pl.Trainer, module: Classifier, epoch: int) -> None:
        graph = self._trace(module.network)
        removed = exact_zeros(graph, self._min_channels)
        if trainer.world_size > 1:
            removed = agreed(trainer, graph, removed)
        if not removed.any():
            return
        if self._absorb is not None:
            self._absorb(module.network, graph, removed)
        rebuild(module.network, graph.plan(removed), in_place=True, optimizer=trainer.optimizers[0])
        module.graph = self._trace(module.network)
        if module.penalty is not None:
            module.penalty.resize(module.network, module.graph)
        module.renew()
        _rewrap(trainer)
        self.history.append({"epoch": epoch, "macs": module.graph.macs(), "groups": len(module.graph)})


def exact_zeros(graph: ChannelGraph, min_channels: int = 1) -> npt.NDArray[np.bool_]:
    """Groups (groups,) that may go because every gamma on them is exactly zero.

    Balanced blocks lose equally many and every layer keeps ``min_channels``; which zeros stay is fixed.
    """
    live, scaled = np.zeros(len(graph), dtype=bool), np.zeros(len(graph), dtype=bool)
    for scale in graph.scales:
        if scale.weight is None:
            continue
        inside = scale.groups >= 0
        gamma = graph.model.get_parameter(scale.weight).detach().cpu().numpy()
        scaled[scale.groups[inside]] = True
        live[scale.groups[inside][gamma[inside] != 0]] = True
    removed: npt.NDArray[np.bool_] = scaled & ~live & graph.prunable
    while True:
        before = int(removed.sum())
        for balance in graph.balance:
            count = min(int(removed[block].sum()) for block in balance.blocks)
            for block in balance.blocks:
                removed[block[removed[block]][count:]] = False
        for space in graph.spaces:
            gone = space.groups[removed[space.groups]]
            spare = len(gone) - max(len(space.groups) - min_channels, 0)
            if spare > 0:
                removed[gone[:spare]] = False
        if int(removed.sum()) == before:
            return removed


def agreed(trainer: pl.Trainer, graph: ChannelGraph, removed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """What rank 0 removes; every rank makes the plan of it and compares the hash.

    Raises:
        RunFailed: The ranks hold different networks.
    """
    told: Any = trainer.strategy.broadcast((removed.tolist(), graph.plan(removed).hash))
    removed = np.array(told[0], dtype=bool)
    mine = graph.plan(removed).hash if len(removed) == len(graph) else "another number of channels"
    if mine != told[1]:
        raise RunFailed(
            f"Every rank must cut the same plan. Got {mine[:12]} on rank {trainer.global_rank}, {told[1][:12]} on 0. "
            "Go on with resume=<run directory>; the last checkpoint is kept."
        )
    return removed


def _rewrap(trainer: pl.Trainer) -> None:
    """DistributedDataParallel remembers shapes: give it the thin network anew."""
    from torch.nn.parallel import DistributedDataParallel

    strategy: Any = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        # The old wrapper holds on to gradient nodes of the old shapes: it must be gone before the next backward.
        strategy.model = strategy.lightning_module
        gc.collect()
        strategy.model = strategy._setup_model(strategy.lightning_module)
