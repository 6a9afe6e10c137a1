"""Timing in turns: every contender runs once per turn, and a ratio is the median of the ratios within one turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Turns:
    """Seconds of every contender, one entry per turn."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over turns of the time of ``name`` over that of ``base``."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(one / other for one, other in pairs)


def take_turns(contenders: Mapping[str, Callable[[], object]], turns: int, warmup: int = 1) -> Turns:
    """Run all contenders ``turns`` times, the order reversed in every second turn.

    A contender that returns a float has timed itself: the seconds of the part that matters.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warmup, turns):
        order = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
        for name in order:
            gc.collect()
            start = time.perf_counter()
            told = contenders[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent = time.perf_counter() - start
            if turn >= 0:
                seconds[name].append(told if isinstance(told, float) else spent)
    return Turns(seconds)
