"""Measured latency, and a roofline that explains it.

MACs are not time. A thin network is timed beside the dense network, in alternating repetitions on the same machine, and
a small roofline, probed on that machine, says which of three things its time goes to:

- *launch*: the fixed cost of starting an operator. Thinner layers do not lower it.
- *bandwidth*: bytes read and written. Halving every width halves it, though it takes the MACs to a quarter.
- *compute*: arithmetic. Only here do MACs turn into time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from slim.report import formatting

KINDS = ("launch", "bandwidth", "compute")
_PROBING = 0.08
"""Seconds for each of a machine's three figures; less where less is given for everything."""


@dataclass(frozen=True)
class Machine:
    """Measured speed of a device: seconds per operator, bytes/s, MACs/s (of a large matrix product)."""

    launch: float
    bandwidth: float
    macs: float


@dataclass(frozen=True)
class Comparison:
    """Latencies of several networks at several batch sizes.

    Attributes:
        millis: network name -> batch size -> median milliseconds of one forward.
        shares: network name -> batch size -> kind -> share of the roofline's time in [0, 1].
        statements: batch size -> one line for the report, about the last network against the first.
    """

    millis: dict[str, dict[int, float]] = field(default_factory=dict)
    shares: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    statements: dict[int, str] = field(default_factory=dict)


def compare(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    batches: Sequence[int] = (1, 64),
    seconds: float = 1.0,
    repetitions: int = 5,
) -> Comparison:
    """Time several networks side by side, in eval mode and inference mode.

    Args:
        models: name -> network, the dense one first. Modes are restored; nothing else is touched.
        example_inputs: a tensor ``(N, ...)``, a tuple or a dict of keyword arguments, on the networks' device. Its
            first sample is repeated to make a batch.
        batches: batch sizes.
        seconds: time to spend per network and batch size; a slow network gets ``repetitions`` runs all the same.
        repetitions: fewest timed runs per network and batch size, after two warm-up runs.
    """
    result = Comparison({name: {} for name in models}, {name: {} for name in models})
    with evaluating(models.values()):
        device = device_of(models.values())
        machine = _machine(device, min(seconds, _PROBING))
        for batch in batches:
            inputs = repeat(example_inputs, batch)
            calls = {name: call_of(model, inputs) for name, model in models.items()}
            for name, millis in alternate(calls, device, seconds=seconds, repetitions=repetitions).items():
                result.millis[name][batch] = millis
                result.shares[name][batch] = roofline(models[name], inputs, machine).shares
            result.statements[batch] = _statement(result, batch)
    return result


def alternate(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 1.0,
    repetitions: int = 5,
    warmup: int = 2,
) -> dict[str, float]:
    """Median milliseconds of every call; the calls alternate, so that a slow period affects all of them."""
    timings: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    synchronize(device)
    collecting = gc.isenabled()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds * len(calls)
        while len(next(iter(timings.values()), [0.0] * repetitions)) < repetitions or time.perf_counter() < deadline:
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                synchronize(device)
                timings[name].append(1e3 * (time.perf_counter() - start))
            if not timings:
                break
    finally:
        if collecting:
            gc.enable()
    return {name: median(values) for name, values in timings.items()}


@dataclass(frozen=True)
class Roofline:
    """A lower bound on one forward's seconds: per operator, the slowest of launch, bandwidth and compute."""

    launch: float
    bandwidth: float
    compute: float
    operators: int

    @property
    def seconds(self) -> float:
        return self.launch + self.bandwidth + self.compute

    @property
    def shares(self) -> dict[str, float]:
        total = self.seconds or 1.0
        return {kind: getattr(self, kind) / total for kind in KINDS}


def roofline(model: nn.Module, inputs: Any, machine: Machine) -> Roofline:
    """Run ``model`` once and add up its operators, each charged to whichever of the three bounds it hits.

    Raises:
        whatever the network raises on ``inputs``.
    """
    counter = _CostCounter(machine)
    # Out of inference mode: there, convolutions reach the dispatcher as operators that the flop registry does not know.
    with torch.inference_mode(False), torch.no_grad(), counter:
        call_of(model, inputs)()
    return Roofline(counter.spent["launch"], counter.spent["bandwidth"], counter.spent["compute"], counter.operators)


class _CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Charges every operator that does work to the slowest of its three bounds."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.machine = machine
        self.spent = dict.fromkeys(KINDS, 0.0)
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        if getattr(func, "is_view", False) or not any(leaf.numel() for leaf in made):
            return out  # moves no byte
        count = flop_registry.get(getattr(func, "_overloadpacket", None))
        flops = count(*args, **kwargs, out_val=out) if count is not None else 0
        costs = {
            "launch": self.machine.launch,
            "bandwidth": sum(leaf.numel() * leaf.element_size() for leaf in (*read, *made)) / self.machine.bandwidth,
            "compute": flops / 2 / self.machine.macs,
        }
        slowest = max(KINDS, key=lambda kind: costs[kind])
        self.spent[slowest] += costs[slowest]
        self.operators += 1
        return out


def probe(device: torch.device | str = "cpu", seconds: float = _PROBING) -> Machine:
    """Measure a device: a tiny operator, a large addition, a large matrix product, ``seconds`` each."""
    device = torch.device(device)
    big = device.type != "cpu"
    with torch.inference_mode():
        tiny = torch.zeros(1, 1, 4, 4, device=device)
        weight = torch.zeros(1, 1, 3, 3, device=device)

        def launches() -> None:
            for _ in range(20):
                torch.relu(nn.functional.conv2d(tiny, weight, padding=1))

        long = torch.zeros((512 if big else 64) * 2**20 // 4, device=device)
        out = torch.empty_like(long)
        side = 4096 if big else 768
        square = torch.ones(side, side, device=device)
        calls: dict[str, Callable[[], object]] = {
            "launch": launches,
            "bandwidth": lambda: torch.add(long, 1.0, out=out),
            "compute": lambda: square @ square,
        }
        millis = alternate(calls, device, seconds=seconds, repetitions=5)
    return Machine(
        launch=millis["launch"] / 1e3 / 40,
        bandwidth=2 * long.numel() * long.element_size() / (millis["bandwidth"] / 1e3),
        macs=side**3 / (millis["compute"] / 1e3),
    )


@cache
def _machine(device: torch.device, seconds: float) -> Machine:
    """:func:`probe`, once in the life of a process for each time it may take."""
    return probe(device, seconds)


def repeat(example_inputs: Any, batch: int) -> Any:
    """Every tensor of ``example_inputs`` with its first sample repeated ``batch`` times, memory layout kept."""

    def grow(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        rows = leaf[:1].expand(batch, *leaf.shape[1:])
        if leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last) and not leaf.is_contiguous():
            return rows.contiguous(memory_format=torch.channels_last)
        return rows.contiguous()

    return tree_map(grow, example_inputs)


def call_of(model: nn.Module, inputs: Any) -> Callable[[], object]:
    """One forward, as a function without arguments."""
    if isinstance(inputs, dict):
        return lambda: model(**inputs)
    if isinstance(inputs, tuple):
        return lambda: model(*inputs)
    return lambda: model(inputs)


def _statement(result: Comparison, batch: int) -> str:
    names = list(result.millis)
    last = names[-1]
    shares = result.shares[last][batch]
    kind = max(KINDS, key=lambda name: shares[name])
    shown = ", ".join(f"{name} {100 * shares[name]:.0f}%" for name in KINDS)
    meaning = {
        "launch": "its time is mostly the fixed cost of starting operators, which thinner layers do not lower",
        "bandwidth": "its time is mostly memory traffic, which falls with widths, more slowly than MACs",
        "compute": "its time is mostly arithmetic, so fewer MACs do make it faster",
    }[kind]
    label = formatting.LABELS.get(last, last)
    line = f"Batch {batch}: the {label} network is {kind}-bound ({shown} of the roofline): {meaning}."
    if len(names) > 1:
        ratio = result.millis[last][batch] / result.millis[names[0]][batch]
        line += f" Measured: {ratio:.2f} x the {names[0]} network's time."
    return line


@contextmanager
def evaluating(models: Any) -> Iterator[None]:
    """Inside, the networks are in eval mode, and the thread in inference mode."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(models: Any) -> torch.device:
    """Where the networks' parameters are."""
    for model in models:
        for parameter in model.parameters():
            return torch.device(parameter.device)
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for what was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
