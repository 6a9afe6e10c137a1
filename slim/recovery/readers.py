"""What least squares can change in a network that is cut: layers that lost inputs, and means of BatchNorms behind."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.channels.calls import after_call
from slim.criteria.patches import blocks_of, draw, outputs_at, patches, regresses

if TYPE_CHECKING:
    from slim.channels import Plan


class Reader(Protocol):
    """A regression: what a module of the thin network reads, and what it lacks of what the dense one makes."""

    @property
    def name(self) -> str:
        """Of the module."""

    @property
    def calls(self) -> int:
        """Of the module, in one forward."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Blocks, inputs and outputs of a block."""

    @property
    def constant(self) -> bool:
        """Whether a constant can be stored."""

    def places(self, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """(P,) flat positions of an output."""

    def wanted(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """What the dense module makes of the channels that stay, (N, P, C)."""

    def made(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """The same of the thin one."""

    def reads(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """What the thin module reads for it, (N, P, g, D)."""

    def store(self, change: Tensor, constant: Tensor | None) -> None:
        """Add ``change`` (g, D, O) and ``constant`` (g, O) to the thin module."""


@dataclass(frozen=True)
class LayerReader:
    """A convolution or linear layer that lost inputs; its constant goes into its bias or the next running mean.

    Attributes:
        name: Of the module.
        calls: In one forward.
        layer: Of the thin network.
        rows: (C,) what stays of the outputs of the dense one.
        means: Running means (thin, dense) of the BatchNorm that reads a layer without bias.
    """

    name: str
    calls: int
    layer: Any
    rows: Tensor
    means: tuple[Tensor, Tensor] | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Blocks, inputs and outputs of a block."""
        blocks, weight = blocks_of(self.layer), self.layer.weight
        return blocks, weight[0].numel(), len(weight) // blocks

    @property
    def constant(self) -> bool:
        """Whether it has a place to go to."""
        return self.layer.bias is not None or self.means is not None

    def places(self, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """At most ``count``, drawn."""
        return draw(self.layer, output, count, generator)

    def wanted(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """Outputs, over the running mean that is subtracted from them."""
        y = outputs_at(self.layer, output, where)
        y = y if self.means is None else y - self.means[1]
        return y.index_select(2, self.rows.to(y.device))

    def made(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """Outputs, over the running mean that is subtracted from them."""
        y = outputs_at(self.layer, output, where)
        return y if self.means is None else y - self.means[0]

    def reads(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """Patches, per block."""
        z = patches(self.layer, x, output, where)
        return z.reshape(*z.shape[:2], *self.sizes[:2])

    def store(self, change: Tensor, constant: Tensor | None) -> None:
        """Into weight and bias or running mean."""
        _add(self.layer.weight, change.transpose(1, 2).reshape(self.layer.weight.shape))
        if constant is not None and self.means is not None:
            _add(self.means[0], -constant.flatten())
        elif constant is not None:
            _add(self.layer.bias, constant.flatten())


@dataclass(frozen=True)
class NormReader:
    """The input of a BatchNorm: a constant alone, in the running mean. A sample is the mean over an image.

    Attributes:
        name: Of the module.
        calls: In one forward.
        thin: The module of the thin network.
        dense: That of the dense one.
        rows: (C,) what stays of its channels.
    """

    name: str
    calls: int
    thin: Any
    dense: Any
    rows: Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        """One block without inputs."""
        return 1, 0, len(self.rows)

    @property
    def constant(self) -> bool:
        """Nothing else."""
        return True

    def places(self, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """All, as one."""
        return torch.zeros(1, dtype=torch.int64)

    def wanted(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """What the dense one normalizes."""
        y: Tensor = _mean_of(self.dense, x) - self.dense.running_mean
        return y.index_select(2, self.rows.to(y.device))

    def made(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """What the thin one normalizes."""
        y: Tensor = _mean_of(self.thin, x) - self.thin.running_mean
        return y

    def reads(self, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
        """No inputs."""
        return x.new_empty(len(x), 1, 1, 0)

    def store(self, change: Tensor, constant: Tensor | None) -> None:
        """Into the running mean."""
        assert constant is not None
        _add(self.thin.running_mean, -constant.flatten())


def _mean_of(norm: Any, x: Tensor) -> Tensor:
    read: Tensor = norm.select(x) if hasattr(norm, "select") else x
    return read.reshape(*read.shape[:2], -1).mean(2)[:, None]


def _add(tensor: Tensor, change: Tensor) -> None:
    tensor.copy_((tensor.double() if change.device == tensor.device else tensor.cpu().double()) + change)


def readers(thin: nn.Module, dense: nn.Module, plan: Plan, forward: Callable[[], None], most: int) -> Iterator[Reader]:
    """What can be refitted, in the order in which ``forward`` calls it.

    Args:
        thin: The network without the removed channels.
        dense: The network with them.
        plan: From the one to the other.
        forward: Runs ``thin`` once.
        most: Inputs of one block that a layer may have.
    """
    twins, used = dict(dense.named_modules()), Counter(map(id, _parameters(thin)))
    calls, following = _calls(thin, forward)
    fitted: set[str] = set()
    found: list[Reader] = []
    for name, times in calls.items():
        module, twin = thin.get_submodule(name), twins.get(name)
        if isinstance(module, _BatchNorm):
            if name not in fitted and isinstance(twin, _BatchNorm) and found:
                found.append(NormReader(name, times, module, twin, _rows(plan, name, twin)))
            continue
        weight = module._parameters.get("weight")
        if weight is None or used[id(weight)] > 1 or twin is None or not _lost_inputs(module, twin):
            continue
        rows, norm = _rows(plan, name, twin), following.get(name)
        if len(rows) == len(weight) and weight[0].numel() <= most:
            means = None
            if norm is not None:
                fitted.add(norm)
                if module.bias is None:
                    means = thin.get_submodule(norm).running_mean, twins[norm].running_mean
            found.append(LayerReader(name, times, module, rows, means))
    yield from found


def _parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    for module in network.modules():
        yield from (p for p in module._parameters.values() if p is not None)


def _lost_inputs(thin: Any, dense: Any) -> bool:
    width = "in_features" if isinstance(thin, nn.Linear) else "in_channels"
    return bool(getattr(thin, width) < getattr(dense, width, 0))


def _rows(plan: Plan, name: str, twin: Any) -> Tensor:
    """What stays of the outputs of a layer."""
    key = f"{name}.weight" if name else "weight"
    keep = plan.axes.get((key, 0)) or plan.axes.get((key.replace("weight", "running_mean"), 0))
    size = twin.num_features if isinstance(twin, _BatchNorm) else len(twin.weight)
    return torch.from_numpy(np.arange(size) if keep is None else np.array(keep.kept))


def _calls(network: nn.Module, forward: Callable[[], None]) -> tuple[dict[str, int], dict[str, str]]:
    """Calls of each layer and BatchNorm in one forward, and the BatchNorm that reads just what a layer made."""
    calls: dict[str, int] = {}
    following: dict[str, str] = {}
    outputs: list[tuple[str, Any, int]] = []

    def count(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        calls[name] = calls.get(name, 0) + 1
        if not isinstance(module, _BatchNorm):
            outputs.append((name, weakref.ref(output), output._version))
        elif not hasattr(module, "select"):
            made = [n for n, ref, version in outputs[-8:] if ref() is args[0] and args[0]._version == version]
            following.update(dict.fromkeys(made, name))

    handles = [
        after_call(module, lambda m, args, out, n=name: count(n, m, args, out))
        for name, module in network.named_modules()
        if regresses(module) or (isinstance(module, _BatchNorm) and module.running_mean is not None)
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    once = {layer: norm for layer, norm in following.items() if calls[layer] == calls[norm] == 1}
    return calls, once
