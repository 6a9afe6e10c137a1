"""Learning rate as a pure function of the optimizer step, so that it can be summed before training begins."""

from __future__ import annotations

import math
from collections.abc import Callable

from slim.pipeline.settings import Scheduler


def rate(scheduler: Scheduler, total_steps: int) -> Callable[[int], float]:
    """Factor on the base learning rate at a 0-based step of ``total_steps``.

    >>> factor = rate(Scheduler(name="step", milestones=(0.5, 0.75), factor=0.1), 100)
    >>> [round(factor(step), 3) for step in (0, 49, 50, 75, 99)]
    [1.0, 1.0, 0.1, 0.01, 0.01]
    """
    warmup = scheduler.warmup * total_steps

    def factor(step: int) -> float:
        done = min(step, total_steps) / max(total_steps, 1)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if scheduler.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if scheduler.name == "step":
            return scheduler.factor ** sum(done >= mark for mark in scheduler.milestones)
        return 1.0

    return factor


def total(factor: Callable[[int], float], lr: float, steps: int) -> list[float]:
    """Learning rate of every step of a phase."""
    return [lr * factor(step) for step in range(steps)]


def tail(factor: Callable[[int], float], before: int) -> Callable[[int], float]:
    """``factor`` from step ``before`` on: what is left of a phase, as a phase of its own.

    Learning-rate rewinding (Renda, Frankle & Carbin 2020, arXiv:2003.02389) trains a cut network with the last rates
    of the training before the cut.

    >>> list(map(tail(lambda step: 1 / (step + 1), 3), range(2)))
    [0.25, 0.2]
    """
    return lambda step: factor(before + step)
