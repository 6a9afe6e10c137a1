"""Checks of the arguments of :class:`slim.lightning.ChannelPruning`, when it is constructed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from slim.errors import SlimError, nearest
from slim.selection import select_groups

BUDGETS = ("ratio", "macs", "params", "memory", "latency")
RECOVER = ("absorb", "least_squares", "batches", "evaluate")


def check_arguments(
    budget: Mapping[str, Any], zeros: bool, every: int | None, recover: Any, limits: Mapping[str, Any]
) -> None:
    """Check that there is exactly one budget, or ``zeros`` with ``every``, and that all options are known.

    Raises:
        SlimError: Otherwise.
    """
    shown = ", ".join(f"{kind}={amount}" for kind, amount in budget.items()) or "none"
    if zeros and (budget or not isinstance(every, int) or every < 1):
        raise SlimError(
            f"zeros removes exact zeros every so many epochs and takes no budget. Got every={every}, budget: {shown}. "
            "Set zeros=True with every=1, or a budget alone."
        )
    if not zeros and (len(budget) != 1 or every is not None):
        raise SlimError(
            f"ChannelPruning needs exactly one budget of {', '.join(BUDGETS)}. Got {shown}, every={every}. "
            "Set one of them, like macs=0.5; every belongs to zeros=True."
        )
    known = [name for name in list(inspect.signature(select_groups).parameters)[2:] if name not in BUDGETS]
    for name in limits:
        if name not in known:
            raise SlimError(
                f"Options must be those of slim.select. Got {name}={limits[name]!r}. {nearest(name, known)}"
            )
    if isinstance(recover, Mapping):
        for key in recover:
            if key not in RECOVER:
                hint = nearest(str(key), RECOVER)
                raise SlimError(f"recover takes {', '.join(RECOVER)}. Got recover.{key}={recover[key]!r}. {hint}")
