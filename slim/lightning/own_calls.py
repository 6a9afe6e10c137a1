"""Layers that a module's step calls by themselves: whether what reads them there can follow a cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from slim.channels import rebuild
from slim.channels.duplicate import deep_copy
from slim.errors import SlimError
from slim.lightning.effects import without_effects
from slim.lightning.example import call_step, eager
from slim.lightning.network import Network, find_network, path_of
from slim.lightning.random_state import preserved
from slim.lightning.selecting import select
from slim.lightning.surgery import is_compiled
from slim.lightning.traced import TracedNetwork


class OwnCalls:
    """Records, until it is closed, which layers of a network are called while the network itself is not.

    Attributes:
        names: Of layers with parameters, as in the network, in the order of their calls.
    """

    def __init__(self, network: nn.Module) -> None:
        self.names: list[str] = []
        self._network, self._inside = network, 0
        self._layers = {part: name for name, part in network.named_modules() if name and part._parameters}
        # Of all modules: hooks of their own would be copied and saved with the layers.
        self._handles = [register_module_forward_pre_hook(self._before), register_module_forward_hook(self._after)]

    def _before(self, module: nn.Module, inputs: Any) -> None:
        self._inside += module is self._network
        name = None if self._inside else self._layers.get(module)
        if name is not None and name not in self.names:
            self.names.append(name)

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside -= module is self._network

    def close(self) -> list[str]:
        """Stop recording; returns :attr:`names`."""
        for handle in self._handles:
            handle.remove()
        return self.names


def own_calls(module: pl.LightningModule, network: nn.Module, batch: Any) -> list[str]:
    """Which layers of its network the module's training step calls by themselves, run aside on ``batch``."""
    calls = OwnCalls(network)
    with preserved():
        _failure(module, network, batch)
    return calls.close()


def check_own_calls(
    module: pl.LightningModule,
    traced: TracedNetwork,
    names: Sequence[str],
    batch: Any,
    limits: Mapping[str, Any],
    copies: Iterable[Network] = (),
) -> None:
    """Where a step calls layers by themselves, run it on a copy whose network lost half of its channels.

    No trace of the network sees what reads them there: a head of the module on a slice of the network has the old
    width. A step that cannot be run aside says nothing.

    Args:
        module: Not changed.
        traced: Its network, dense.
        names: Of those layers.
        batch: Of training, on the module's device.
        limits: Of :func:`slim.select`.
        copies: Further networks of the module that are cut alike.

    Raises:
        SlimError: It runs on the dense network, and not on the thin one.
    """
    if not names or is_compiled(module) or "training_step" in vars(module):
        return
    with preserved():
        try:
            twin: Any = deep_copy(module)
            plan = traced.graph.plan(select(traced, "uniform", {"ratio": 0.5}, limits).removed)
        except Exception:
            return  # it holds what has no copy, or its limits leave no half
        twin._trainer = module._trainer  # which a copy leaves out
        network = twin.get_submodule(path_of(module, traced.network))
        if _failure(twin, network, batch) is not None:
            return
        for part in (network, *(find_network(twin, each) for each in copies)):
            rebuild(part, plan, in_place=True)
        error = _failure(twin, network, batch)
    if error is None or isinstance(error, torch.OutOfMemoryError):
        return
    known = {layer for space in traced.graph.spaces for layer in space.modules}
    kept = ", ".join(repr(name) for name in names if name in known)
    raise SlimError(
        "A step must run on the thin network, too. "
        f"Got {type(error).__name__} in {type(module).__name__}.training_step, "
        f"which calls {kept} of the network by themselves: {' '.join(str(error).split())[:120]}. "
        f"Keep what it reads there with ignore=[{kept}], or make the reader a part of the network."
    )


def _failure(module: pl.LightningModule, network: nn.Module, batch: Any) -> Exception | None:
    """What the training step raises on ``batch``."""
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        eager(network),
        without_effects(module, network),
        _without_loggers(module),
    ):
        try:
            call_step(module.training_step, "training_step", batch)
        except Exception as error:
            return error
    return None


@contextmanager
def _without_loggers(module: pl.LightningModule) -> Iterator[None]:
    trainer = module._trainer
    if trainer is None:
        yield
        return
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
