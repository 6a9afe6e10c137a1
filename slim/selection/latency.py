"""Latency as a budget: a table of layer times measured on this machine, and a check against the rebuilt network.

MACs are not time: a thin layer can be as slow as a wide one. So every distinct layer shape of the network is timed at a
few widths, the times between them are interpolated, and what the layers do not explain (normalization, activations,
copies) is taken to follow the size of the activations. NetAdapt (Yang et al. 2018, arXiv:1804.03230) uses such tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slim.channels import rebuild
from slim.channels.meta_forward import call_arguments
from slim.criteria.progress import progress
from slim.criteria.tensors import in_groups, out_dim, out_groups

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Ints = npt.NDArray[np.int64]
Removed = npt.NDArray[np.bool_]
Statistic = Callable[[Sequence[float]], Any]
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SHARES = (0.125, 0.25, 0.5, 1.0)
NOISE = 1.02
"""Relative difference of two measurements of one network."""
MEASUREMENTS = 6
"""Measurements of rebuilt networks where the first prediction is not met."""


@dataclass(frozen=True)
class Grid:
    """Milliseconds of one layer shape at some widths: ``times[i, j]`` for ``ins[i]`` inputs and ``outs[j]`` outputs."""

    ins: Ints
    outs: Ints
    times: npt.NDArray[np.float64]

    def at(self, cin: float, cout: float) -> float:
        """Milliseconds at any widths, linear between those measured."""
        column = [np.interp(cout, self.outs, row) for row in self.times]
        return float(np.interp(cin, self.ins, column))


@dataclass(frozen=True)
class LatencyTable:
    """Predicts the milliseconds of a forward without some channels, from measured layer times.

    Attributes:
        graph: The network's channels.
        layers: Per layer call: its times, and the groups of its inputs and outputs (or their fixed number).
        dense: Measured milliseconds of the whole network.
        inputs: The inputs it was measured on.
    """

    graph: ChannelGraph
    layers: list[tuple[Grid, Ints | int, Ints | int]]
    dense: float
    inputs: Any

    def cost(self, removed: Removed) -> float:
        """Predicted milliseconds of a forward without the ``removed`` groups (n_groups,)."""
        nothing = np.zeros(len(self.graph), dtype=bool)
        whole = self._layer_time(nothing)
        if whole > self.dense:
            return self._layer_time(removed) * self.dense / whole
        share = _activations(self.graph, removed) / max(1, _activations(self.graph, nothing))
        return self._layer_time(removed) + (self.dense - whole) * share

    def check(self, removed: Removed) -> float:
        """Measured milliseconds: the network is rebuilt and runs in turns with the whole one, so that drift cancels."""
        thin = rebuild(self.graph.model, self.graph.plan(removed))
        whole, rest = side_by_side([self.graph.model, thin], self.inputs)
        return self.dense * rest / whole

    def confirm(
        self, removed_after: Callable[[int], Removed], first: int, last: int, limit: float
    ) -> tuple[int, float]:
        """(steps, measured milliseconds): the fewest steps whose removal is measured to meet ``limit``.

        The table underestimates: starting an operator costs the same at any width, and processors run some widths
        faster. Where the prediction is not met, more steps are removed, by bisection, each measured.

        Args:
            removed_after: Removed groups (n_groups,) after so many steps.
            first: The number of steps predicted by the table.
            last: The number of all steps; returned when even they do not meet the limit.
            limit: Milliseconds; a factor of ``NOISE`` more is allowed.
        """
        measured = self.check(removed_after(first))
        if measured <= limit * NOISE:
            return first, measured
        low, high, achieved = first, last, self.check(removed_after(last))
        if achieved > limit * NOISE:
            return last, achieved
        for _ in range(MEASUREMENTS):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            measured = self.check(removed_after(middle))
            if measured <= limit * NOISE:
                high, achieved = middle, measured
            else:
                low = middle
        return high, achieved

    def _layer_time(self, removed: Removed) -> float:
        keep = np.append(~removed, True)

        def width(axis: Ints | int) -> float:
            return float(axis) if isinstance(axis, int) else float(keep[axis].sum())

        return sum(grid.at(width(ins), width(outs)) for grid, ins, outs in self.layers)


def measure(graph: ChannelGraph, example_inputs: Any = None) -> LatencyTable:
    """Time every distinct layer shape of the network on its own device; seconds for a ResNet-50 at batch 1.

    Args:
        graph: The network's channels; its model is run in eval mode and left as it was.
        example_inputs: What a forward is timed on; random data in the shapes that were traced, by default.
    """
    device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
    inputs = _random(graph.inputs, device) if example_inputs is None else example_inputs
    grids: dict[tuple[Any, ...], Grid] = {}
    layers: list[tuple[Grid, Ints | int, Ints | int]] = []
    with _evaluating([graph.model]):
        calls = _calls(graph, inputs)
        for name, shape in progress(calls, len(calls), "timing layers"):
            module = graph.model.get_submodule(name)
            ins, outs, build = _builder(module, shape)
            key = (_settings(module), shape)
            if key not in grids:
                grids[key] = _grid(ins, outs, build, shape, module, device)
            weight, dim = f"{name}.weight", out_dim(module)
            ends = _or(in_groups(graph, weight, dim), ins), _or(out_groups(graph, weight, dim), outs)
            layers.append((grids[key], *ends))
    return LatencyTable(graph, layers, side_by_side([graph.model], inputs)[0], inputs)


def side_by_side(
    models: Sequence[nn.Module], inputs: Any = None, seconds: float = 0.3, *, statistic: Statistic = np.median
) -> list[float]:
    """Milliseconds of one forward of every model in eval mode, on one device: medians of runs that take turns.

    Args:
        models: On the same device; left as they are.
        inputs: What they run on, the same for all.
        seconds: Spent on each, after two runs to warm up; at least five runs.
        statistic: Of the times of a model. The least one is of what the model needs, however busy the machine is.
    """
    device = next((p.device for p in models[0].parameters()), torch.device("cpu"))
    forwards = [_run(model, inputs) for model in models]
    with _evaluating(models):
        return _times(forwards, device, seconds, statistic)


def forward_times(graphs: Sequence[ChannelGraph]) -> list[float]:
    """Milliseconds of one forward of every network, in turns, on random data in the shapes that were traced."""
    device = next((p.device for p in graphs[0].model.parameters()), torch.device("cpu"))
    return side_by_side([graph.model for graph in graphs], _random(graphs[0].inputs, device))


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode inside: a forward in training mode would change the statistics of normalizations."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _or(groups: Ints | None, width: int) -> Ints | int:
    return groups if groups is not None and len(groups) == width else width


def _calls(graph: ChannelGraph, inputs: Any) -> list[tuple[str, tuple[int, ...]]]:
    """(module, input shape) of every call of a convolution or linear layer, in order."""
    found: list[tuple[str, tuple[int, ...]]] = []
    handles = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: found.append((name, tuple(args[0].shape)))

    try:
        for name, module in graph.model.named_modules():
            if isinstance(module, (_ConvNd, nn.Linear)):
                handles.append(module.register_forward_pre_hook(note(name)))
        _run(graph.model, inputs)()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _builder(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, int, Callable[[int, int], nn.Module]]:
    """(inputs, outputs, a function from both widths to a layer like ``module``)."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, lambda i, o: nn.Linear(i, o, module.bias is not None)
    assert isinstance(module, _ConvNd)
    depthwise = module.groups == module.in_channels > 1
    kinds: dict[int, Any] = TRANSPOSED if isinstance(module, _ConvTransposeNd) else PLAIN
    kind = kinds[len(module.kernel_size)]

    def build(cin: int, cout: int) -> nn.Module:
        made: nn.Module = kind(
            cin,
            cout,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=cin if depthwise else module.groups,
            bias=module.bias is not None,
        )
        return made

    return module.in_channels, module.out_channels, build


def _settings(module: nn.Module) -> tuple[Any, ...]:
    names = ("in_channels", "out_channels", "in_features", "out_features", "kernel_size", "stride", "padding")
    found = [getattr(module, n, None) for n in (*names, "dilation", "groups", "transposed")]
    return (*found, module.bias is not None)


def _grid(
    ins: int, outs: int, build: Callable[[int, int], nn.Module], shape: tuple[int, ...], module: nn.Module, device: Any
) -> Grid:
    groups = int(getattr(module, "groups", 1))
    dtype = next(module.parameters()).dtype
    axis = -1 if isinstance(module, nn.Linear) else len(shape) - len(getattr(module, "kernel_size", ())) - 1
    depthwise = groups == ins > 1
    block = 1 if depthwise else groups
    columns = _widths(outs, block if not depthwise else 1)
    rows = np.array([ins]) if depthwise else _widths(ins, block)
    times = np.zeros((len(rows), len(columns)))
    for i, cin in enumerate(rows):
        for j, cout in enumerate(columns):
            wide = int(cout) * ins // outs if depthwise else int(cin)
            size = list(shape)
            size[axis] = wide
            layer = build(wide, int(cout) // wide * wide if depthwise else int(cout)).to(device, dtype).eval()
            times[i, j] = _times([_run(layer, torch.randn(size, device=device, dtype=dtype))], device, 0.002)[0]
    # Noise must not make a thinner layer slower: budgets are searched by bisection.
    return Grid(rows, columns, np.maximum.accumulate(np.maximum.accumulate(times, 0), 1))


def _widths(full: int, block: int) -> Ints:
    return np.unique([max(block, round(full * s / block) * block) for s in SHARES]).astype(np.int64)


def _activations(graph: ChannelGraph, removed: Removed) -> int:
    """Elements that the layers put out."""
    keep = np.append(~removed, True)
    total = 0
    for layer in graph.layers:
        elements, groups = layer.activations[-1]
        total += elements if groups is None else elements * int(keep[groups].sum())
    return total


def _run(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    args, kwargs = call_arguments(inputs)

    def forward() -> Any:
        with torch.inference_mode():
            return model(*args, **kwargs)

    return forward


def _times(
    forwards: Sequence[Callable[[], Any]], device: torch.device, seconds: float, statistic: Statistic = np.median
) -> list[float]:
    """Milliseconds of each, by ``statistic`` of at least five runs in turns, after two to warm up."""
    finish: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    runs: list[list[float]] = [[] for _ in forwards]
    stop = math.inf
    for i in count():
        if i == 2:
            stop = time.perf_counter() + seconds * len(forwards)
        for forward, times in zip(forwards, runs, strict=True):
            start = time.perf_counter()
            forward()
            finish()
            if i >= 2:
                times.append(time.perf_counter() - start)
        if i >= 6 and time.perf_counter() > stop:
            break
    return [float(statistic(times) * 1e3) for times in runs]


def _random(spec: Any, device: Any) -> Any:
    """Random inputs in the shapes and types that a graph was traced on."""
    if "shape" in spec:
        dtype = getattr(torch, spec["dtype"])
        return torch.randn(spec["shape"], device=device).to(dtype)
    if "dict" in spec:
        return {k: _random(v, device) for k, v in spec["dict"].items()}
    return tuple(_random(v, device) for v in spec["list"])
