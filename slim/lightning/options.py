"""Arguments of :class:`slim.lightning.ChannelPruning`, checked when it is constructed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from slim.errors import SlimError, nearest
from slim.selection import select_groups

BUDGETS = ("ratio", "macs", "params", "memory", "latency")


@dataclass(frozen=True)
class Recovery:
    """What is repaired around a cut; see :func:`slim.recovery.recover`.

    Attributes:
        absorb: Move what removed channels contribute into the next layer.
        least_squares: Batches to refit on what reads removed channels; 0: not at all.
        batches: To recalibrate BatchNorm on; 0: not at all.
        evaluate: Network to a figure, higher is better: keeps a step only if it helps.
    """

    absorb: bool = True
    least_squares: int = 0
    batches: int = 100
    evaluate: Callable[[nn.Module], float] | None = None

    @classmethod
    def of(cls, given: bool | Mapping[str, Any]) -> Recovery:
        """True: all but least squares. False, or an empty dict: nothing. A dict: some of the attributes.

        Raises:
            SlimError: Something else, or an unknown name.
        """
        if not given:
            return cls(absorb=False, batches=0)
        if given is True:
            return cls()
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise SlimError(
                f"recover must be True, False or a dict of {', '.join(known)}. Got {given!r}. "
                'Set for example recover={"batches": 50}.'
            )
        for key in given:
            if key not in known:
                hint = nearest(str(key), known)
                raise SlimError(f"recover takes {', '.join(known)}. Got recover.{key}={given[key]!r}. {hint}")
        return cls(**given)


def check_arguments(budget: Mapping[str, Any], zeros: bool, every: int | None, limits: Mapping[str, Any]) -> None:
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
