"""A module's step, run to see what it gives the network: what else it does is undone."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

CONTAINERS = (list, dict, set, deque)
SILENT = ("log", "log_dict", "manual_backward", "toggle_optimizer", "untoggle_optimizer", "clip_gradients")


@contextmanager
def without_effects(module: pl.LightningModule, network: nn.Module) -> Iterator[None]:
    """Inside, logging and manual optimization do nothing; afterwards the module is as before.

    That is its weights and buffers outside of ``network``, states of metrics and other attributes, what lists and dicts
    among them hold, and every ``requires_grad``.
    """
    silent: list[tuple[Any, str]] = [(module, name) for name in SILENT]
    trains = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    if module._trainer is not None:
        optimizers = module.trainer.strategy._lightning_optimizers
        silent += [(optimizer, name) for optimizer in optimizers for name in ("step", "zero_grad")]
        silent += [(config.scheduler, "step") for config in module.trainer.lr_scheduler_configs]
    undo = _snapshot(module, network)
    own = [(owner, name, vars(owner)[name]) for owner, name in silent if name in vars(owner)]
    for owner, name in silent:
        object.__setattr__(owner, name, _do_nothing)
    try:
        yield
    finally:
        for owner, name in silent:
            object.__delattr__(owner, name)
        for owner, name, method in own:  # what somebody else has put on the instance
            object.__setattr__(owner, name, method)
        undo()
        for parameter, trainable in trains:
            parameter.requires_grad = trainable


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Replaces a method whose effect is not wanted."""


def _snapshot(module: nn.Module, network: nn.Module) -> Callable[[], None]:
    """What restores the attributes of all modules around ``network``, which no step has reached when it is ended."""
    inside = set(network.modules()) - {module}
    parts = [part for part in module.modules() if part not in inside]
    attributes = [(part, dict(vars(part))) for part in parts]
    held = [value for _, values in attributes for value in values.values()]
    contents = [(value, copy.copy(value)) for value in held if type(value) in CONTAINERS]
    # Not those inside of other lists and dicts, which may be as many as a memory of samples.
    own = [tensor for part in parts for tensor in (*part._parameters.values(), *part._buffers.values())]
    tensors = {id(value): value for value in [*own, *held] if isinstance(value, Tensor) and not value.is_inference()}
    if network is module:
        tensors = {}
    before = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors.values()]

    def undo() -> None:
        for part, values in attributes:
            vars(part).clear()
            vars(part).update(values)
        for container, copied in contents:
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(copied)
        with torch.no_grad():
            for tensor, version, value in before:
                if tensor._version != version:
                    tensor.copy_(value)

    return undo
