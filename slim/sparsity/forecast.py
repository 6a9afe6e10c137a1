"""Forecast before training: whether the penalty can bring the median gamma to zero in the given steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from slim.errors import SlimError


@dataclass(frozen=True)
class Forecast:
    """How far a phase can shrink the gammas.

    Attributes:
        shrink_budget: the most a gamma can lose over the phase, sum(lr * lam / (1 - momentum)).
        median_gamma: half of the gammas start below this.
        reachable: whether the penalty can bring the median gamma to zero.
        line: one line to print; a warning when not ``reachable``.
    """

    shrink_budget: float
    median_gamma: float
    reachable: bool
    line: str


def shrink_forecast(
    law: str,
    gammas: Tensor,
    lrs: Sequence[float] | float,
    lam_at: Callable[[int, int], float],
    lam: float,
    momentum: float,
    slope: float = 1.0,
) -> Forecast:
    """Compare the shrink budget with the gammas.

    Args:
        law: name for the line.
        gammas: flat vector ``(N,)`` of the scales now.
        lrs: learning rate of every step, or their sum (lam is then taken as constant).
        lam_at: lam at ``(step, total)``.
        lam: full value.
        momentum: of the optimizer, in [0, 1); 0 for a law that acts after the optimizer's step.
        slope: subgradient of the law at a small gamma, in units of lam.
    """
    if not 0 <= momentum < 1:
        raise SlimError(f"momentum must be in [0, 1). Got momentum={momentum}. Set optimizer.momentum.")
    if isinstance(lrs, int | float):
        budget, total_lr = lrs * lam, float(lrs)
    else:
        steps = len(lrs)
        budget = sum(lr * lam_at(i, steps) for i, lr in enumerate(lrs))
        # The advised lam must count warm-up and schedule, which weaken it.
        total_lr = budget / lam if lam > 0 else float(sum(lrs))
    budget *= slope / (1 - momentum)
    median = float(gammas.abs().median())
    reachable = budget >= median * (1 - 1e-9)  # a sum of learning rates is rounded
    line = f"{law}: lam={lam:g} can shrink a gamma by at most {budget:.3g} in this phase; the median is {median:.3g}."
    if lam == 0:  # asked for: a control without pressure, or a criterion that needs none
        line = f"{law}: lam=0 puts no pressure on the scales."
    elif not reachable:
        needed = median * (1 - momentum) / (slope * total_lr) if total_lr > 0 else float("inf")
        advice = f"set penalty.lam to {round_up(needed)} or more, train longer, or use penalty=target."
        line += f" Too weak to reach zero: {advice}"
    return Forecast(budget, median, reachable, line)


def under_adaptive(forecast: Forecast, lrs: Sequence[float], optimizer: str) -> Forecast:
    """``forecast`` of a law that adds to gradients, for an optimizer that divides them by their size, like Adam.

    How large an addition is then matters only beside the loss's own gradient, and a step is about as long as the
    learning rate.
    """
    if not forecast.shrink_budget > 0:
        return forecast
    most, median = float(sum(lrs)), forecast.median_gamma
    line = (
        f"{forecast.line.partition(':')[0]}: {optimizer} divides gradients by their size, so a gamma can lose about "
        f"{most:.3g} in this phase, the sum of the learning rates, whatever lam is; the median is {median:.3g}."
    )
    if most < median:
        line += " Too weak to reach zero: raise the learning rate, train longer, or use penalty=target."
    return Forecast(most, median, most >= median, line)


def round_up(value: float) -> str:
    """Round up to two significant digits, so that the advised value suffices.

    >>> round_up(1.301e-4), round_up(0.25)
    ('0.00014', '0.25')
    """
    if not 0 < value < float("inf"):
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(round(value / unit, 9)) * unit:.2g}"
