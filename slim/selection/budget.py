"""Budgets: the number of removal steps that meet a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Removed = npt.NDArray[np.bool_]
COSTS = ("macs", "params", "memory", "latency")


@dataclass(frozen=True)
class Target:
    """A target: ``kind`` is ``ratio`` or one of the costs, ``amount`` the value the user gave."""

    kind: str
    amount: float


def target_of(*, ratio: Any = None, **costs: Any) -> Target | None:
    """The one target that is set, checked; None when none is.

    Raises:
        SlimError: Two targets, or an amount out of range.
    """
    given = {k: v for k, v in {"ratio": ratio, **costs}.items() if v is not None}
    if len(given) > 1:
        shown = ", ".join(f"{k}={v}" for k, v in given.items())
        raise SlimError(
            f"One target decides. Got {shown}. Set one of ratio, {', '.join(COSTS)} and leave the others null."
        )
    for kind, amount in given.items():
        number = isinstance(amount, (int, float, np.integer, np.floating)) and not isinstance(amount, bool)
        if kind == "ratio":
            if not number or not 0 <= amount < 1:
                raise SlimError(f"ratio must be in [0, 1). Got ratio={amount!r}. Set prune.ratio below 1.")
        elif not number or not 0 < amount < np.inf:
            raise SlimError(
                f"{kind} must be a fraction kept in (0, 1] or an absolute number above 1. Got {kind}={amount!r}."
                f" Set prune.{kind}."
            )
        return Target(kind, float(amount))
    return None


def cost_of(graph: ChannelGraph, kind: str, latency: Any = None) -> Callable[[Removed], float]:
    """The function from removed groups (n_groups,) to MACs, parameters, elements (memory) or milliseconds (latency)."""
    if kind == "memory":
        return graph.peak_activation
    if kind == "latency":
        cost: Callable[[Removed], float] = latency.cost
        return cost
    return graph.macs if kind == "macs" else graph.params


def nearest_count(cumulative: npt.NDArray[np.int64], target: float) -> int:
    """The number of steps whose counts sum nearest to ``target``; of two equally near, the smaller.

    >>> nearest_count(np.array([1, 2, 4]), 3.0), nearest_count(np.array([1, 2, 4]), 0.0)
    (2, 0)
    """
    reach = np.concatenate([[0], cumulative])
    return int(np.argmin(np.abs(reach - target)))


def smallest_prefix(cost: Callable[[int], float], n_steps: int, limit: float) -> int | None:
    """The fewest steps whose removal brings ``cost`` to at most ``limit``; None when all of them do not.

    ``cost`` decreases with every step. The comparison allows a relative rounding error of 10^-12.
    """
    limit *= 1 + 1e-12
    if cost(n_steps) > limit:
        return None
    low, high = 0, n_steps
    while low < high:
        middle = (low + high) // 2
        if cost(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return low
