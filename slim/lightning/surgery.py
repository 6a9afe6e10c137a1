"""Rebuild a network inside a running Trainer: optimizers, averaged copies, DDP and compiled code follow."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn
from torch.optim import Optimizer

from slim.channels import ChannelGraph, Plan, rebuild
from slim.channels.optimizer_states import forget_unsliceable, nested
from slim.errors import RunFailed, SlimError
from slim.lightning.traced import callbacks_of

BoolArray = npt.NDArray[np.bool_]
SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def refuse_sharded(trainer: pl.Trainer, what: str) -> None:
    """Refuse strategies that shard weights over processes: ``what`` ranks and cuts whole weights.

    Raises:
        SlimError: The strategy shards weights.
    """
    name = type(trainer.strategy).__name__
    if name in SHARDED or name.startswith("DeepSpeed"):
        raise SlimError(f"{what} needs whole weights on every process. Got strategy={name}. Train with strategy='ddp'.")


def refuse_spawned(trainer: pl.Trainer, what: str) -> None:
    """Refuse strategies whose processes end with the fit: the thin network would be lost with them.

    Raises:
        SlimError: The strategy spawns or forks its processes.
    """
    method = getattr(trainer.strategy, "_start_method", "popen")
    if method != "popen":
        raise SlimError(
            f"{what} needs processes that outlive the fit. Got strategy={type(trainer.strategy).__name__} with "
            f"start_method={method}. Train with strategy='ddp', or with torchrun."
        )


def refuse_masks(trainer: pl.Trainer, what: str) -> None:
    """Refuse Lightning's ``ModelPruning``, whose masks keep the shapes that layers had when they were made.

    Raises:
        SlimError: The Trainer has it.
    """
    if any(isinstance(callback, ModelPruning) for callback in callbacks_of(trainer)):
        raise SlimError(
            f"{what} removes channels, which masks of single weights cannot follow. Got ModelPruning among the "
            "callbacks. Leave it out, or mask the thin network in a fit of its own."
        )


def cut_in_place(network: nn.Module, plan: Plan, optimizers: Iterable[Optimizer] = ()) -> None:
    """Rebuild ``network`` in place; every optimizer's state of its parameters is sliced with them.

    A state that is not shaped like its parameter (the factors of Adafactor, the history of LBFGS) cannot be sliced and
    starts anew.
    """
    optimizers = [each for optimizer in optimizers for each in nested(optimizer)]
    named = {id(p): name for name, p in network.named_parameters()}
    cut = {name for name, _ in plan.axes}
    states: dict[Any, Any] = {}
    for optimizer in optimizers:
        for note in forget_unsliceable(optimizer, network, plan):
            rank_zero_warn(note)
        for parameter, state in optimizer.state.items():
            if named.get(id(parameter)) not in cut:
                continue
            # One rebuild slices all states: those of a second optimizer come under keys of their own.
            states.setdefault(parameter, {}).update({(id(optimizer), key): value for key, value in state.items()})
    merged: Any = _Merged(states, [group for optimizer in optimizers for group in optimizer.param_groups])
    rebuild(network, plan, in_place=True, optimizer=merged)
    for optimizer in optimizers:
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for parameter in [each for each in optimizer.state if isinstance(each, Tensor) and each not in stepped]:
            del optimizer.state[parameter]  # of a residual branch that went whole
        for parameter, of_all in states.items():
            mine = {key[1]: value for key, value in of_all.items() if key[0] == id(optimizer)}
            if mine:
                optimizer.state[parameter].update(mine)


class _Merged:
    """Several optimizers presented as one to ``rebuild``, which edits ``state`` and ``param_groups``."""

    def __init__(self, state: dict[Any, Any], param_groups: list[dict[str, Any]]) -> None:
        self.state, self.param_groups = state, param_groups


def after_surgery(trainer: pl.Trainer | None, module: nn.Module) -> None:
    """Renew what depends on the old shapes: the DistributedDataParallel wrapper, and compiled code."""
    if is_compiled(module):
        torch.compiler.reset()
    strategy: Any = None if trainer is None else trainer.strategy
    if isinstance(getattr(strategy, "model", None), nn.parallel.DistributedDataParallel):
        # The old wrapper holds on to gradient nodes of the old shapes: it must be gone before the next backward.
        strategy.model = strategy.lightning_module
        gc.collect()
        strategy.configure_ddp()
        strategy._pl_static_graph_delay_done = False


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or a part of it, runs under ``torch.compile``."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    held = [*module.modules(), *(value for value in vars(module).values() if isinstance(value, nn.Module))]
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in held)


def broadcast_removed(trainer: pl.Trainer | None, graph: ChannelGraph, removed: BoolArray) -> BoolArray:
    """Broadcast what rank 0 removes; every rank makes the plan of it and compares the hash.

    Raises:
        RunFailed: The ranks hold different networks.
    """
    if trainer is None or trainer.world_size == 1:
        return removed
    sent: Any = trainer.strategy.broadcast((removed.tolist(), graph.plan(removed).hash))
    removed = np.array(sent[0], dtype=bool)
    mine = graph.plan(removed).hash if len(removed) == len(graph) else "another number of channels"
    if mine != sent[1]:
        raise RunFailed(
            f"Every rank must cut the same plan. Got {mine[:12]} on rank {trainer.global_rank}, {sent[1][:12]} on 0. "
            "Start from the last checkpoint; ranks must build the same network."
        )
    return removed


def synchronize(trainer: pl.Trainer | None, *networks: nn.Module) -> None:
    """Broadcast the weights and statistics of rank 0: recovery has seen other data on each rank."""
    if trainer is None or trainer.world_size == 1:
        return
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            torch.distributed.broadcast(tensor.detach(), src=0)
