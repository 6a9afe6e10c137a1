"""Where the time of a forward goes: measured milliseconds of every layer, of several networks in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from slim.report.latency import call_of, device_of, evaluating, repeat, synchronize


def by_layer(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    layers: Sequence[str],
    *,
    batch: int = 1,
    seconds: float = 1.0,
    repetitions: int = 3,
) -> dict[str, dict[str, float]]:
    """Median milliseconds of every layer within a forward, in eval mode and inference mode.

    The clock is read before and after the layer's own forward, on a GPU after what was started is done; so the sum is
    above the time of an undisturbed forward. A layer that is called several times counts with all of them.

    Args:
        models: name -> network; their forwards alternate. Modes are restored; nothing else is touched.
        example_inputs: As for :func:`slim.report.latency.compare`.
        layers: Names of modules; those that a network lacks are left out.
        batch: The first sample is repeated to make one.
        seconds: To spend on each network.
        repetitions: Fewest timed forwards of each, after one to warm up.

    Returns:
        Network -> layer -> milliseconds.
    """
    device = device_of(models.values())
    inputs = repeat(example_inputs, batch)
    clocks = {name: _Clock(model, layers, device) for name, model in models.items()}
    try:
        with evaluating(models.values()):
            deadline = time.perf_counter() + seconds * len(models)
            for turn in range(100_000):
                if turn > repetitions and time.perf_counter() > deadline:
                    break
                for name, model in models.items():
                    call_of(model, inputs)()
                    clocks[name].turn(warm=turn > 0)
    finally:
        for clock in clocks.values():
            clock.remove()
    return {name: clock.medians() for name, clock in clocks.items()}


class _Clock:
    """Hooks around the layers of one network."""

    def __init__(self, model: nn.Module, layers: Sequence[str], device: torch.device) -> None:
        parts = dict(model.named_modules())
        self._device = device
        self._now: dict[str, float] = {}
        self._all: dict[str, list[float]] = {}
        self._began: list[float] = []
        self._handles: list[Any] = []
        for name in (name for name in layers if name in parts):
            self._handles.append(parts[name].register_forward_pre_hook(self._begin))
            self._handles.append(parts[name].register_forward_hook(self._end_of(name)))

    def _begin(self, module: nn.Module, args: Any) -> None:
        synchronize(self._device)
        self._began.append(time.perf_counter())

    def _end_of(self, name: str) -> Any:
        def end(module: nn.Module, args: Any, out: Any) -> None:
            synchronize(self._device)
            self._now[name] = self._now.get(name, 0.0) + 1e3 * (time.perf_counter() - self._began.pop())

        return end

    def turn(self, *, warm: bool) -> None:
        """A forward is over; it counts unless it was the first."""
        if warm:
            for name, millis in self._now.items():
                self._all.setdefault(name, []).append(millis)
        self._now = {}

    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self._all.items()}

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
