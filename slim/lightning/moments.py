"""The schedule of cuts in a fit: after which epoch, and to which budget each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl

from slim.errors import SlimError, expect_whole, nearest
from slim.selection import passes

END = "end"
KEYS = ("count", "growth", "start", "every")


@dataclass(frozen=True)
class Moment:
    """One cut: after so many epochs (``None``: when training ends), to this share of the dense network."""

    epochs: int | None
    amount: float


def moments(at: Any, kind: str, amount: float, max_epochs: int | None) -> tuple[Moment, ...]:
    """The cuts of a fit, in order.

    Args:
        at: ``"end"``; epochs done before the cut; several of these for a budget that is reached step by step; or
            ``count`` cuts, ``every`` so many epochs (by default spread evenly over the fit), whose ``growth`` is
            ``linear`` or ``cubic`` from ``start``, as of :func:`slim.selection.passes`.
        kind: Kind of the budget.
        amount: The budget.
        max_epochs: Of the Trainer; ``None`` where it has no limit.

    Raises:
        SlimError: ``at`` is none of these, not in order, or beyond the end of the fit.

    >>> [moment.epochs for moment in moments({"count": 3}, "macs", 0.5, 8)]
    [2, 4, 6]
    >>> [round(moment.amount, 2) for moment in moments([1, 2], "ratio", 0.5, 8)]
    [0.25, 0.5]
    """
    if isinstance(at, str) and at == END:
        return (Moment(None, amount),)
    growth: dict[str, Any] = {}
    if isinstance(at, Mapping):
        epochs, growth = _spread(at, max_epochs)
    else:
        epochs = (
            [at] if isinstance(at, int) else list(at) if isinstance(at, Sequence) and not isinstance(at, str) else []
        )
    whole = all(isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0 for epoch in epochs)
    if not epochs or not whole or any(a >= b for a, b in pairwise(epochs)):
        raise SlimError(
            f"at must be 'end', a number of epochs done, or ascending ones. Got at={at!r}. Set at=20, at=[10, 15, 20] "
            "or at={'count': 3}."
        )
    if max_epochs is not None and epochs[-1] > max_epochs:
        raise SlimError(
            f"A cut must come within the fit. Got at={at!r} with max_epochs={max_epochs}. "
            "Set at below it, or max_epochs above."
        )
    name = "iterative" if len(epochs) > 1 else "one_shot"
    amounts = [each.amount for each in passes(name, kind=kind, amount=amount, count=len(epochs), **growth)]
    return tuple(Moment(epoch, share) for epoch, share in zip(epochs, amounts, strict=True))


def fit_ends(trainer: pl.Trainer, done: int) -> bool:
    """Whether the fit ends after ``done`` epochs, by its epochs or its steps (-1 of either is no limit)."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return (epochs is not None and 0 <= epochs <= done) or 0 <= steps <= trainer.global_step


def check_moments(at: Any, budget: Mapping[str, Any]) -> None:
    """Check a schedule as far as it is wrong for a fit of any length.

    Raises:
        SlimError: See :func:`moments`.
    """
    for kind, amount in budget.items():
        # So many epochs that all cuts are within, and cuts spread over them have one each.
        moments(at, kind, amount, 10**9)


def _spread(at: Mapping[str, Any], max_epochs: int | None) -> tuple[list[int], dict[str, Any]]:
    for key in at:
        if key not in KEYS:
            raise SlimError(f"at takes {', '.join(KEYS)}. Got at.{key}={at[key]!r}. {nearest(str(key), KEYS)}")
    count, every = at.get("count", 1), at.get("every")
    if every is None and max_epochs is None:
        raise SlimError(
            "Cuts are spread over a known number of epochs. Got max_epochs=None. Set at.every, or max_epochs."
        )
    expect_whole("at.count", count, 1, "Set the number of cuts.")
    if every is None:
        epochs = [max(1, round((max_epochs or 0) * (index + 1) / (count + 1))) for index in range(count)]
        if len(set(epochs)) < count:
            raise SlimError(
                f"Each cut needs an epoch of its own. Got at.count={count} with max_epochs={max_epochs}. "
                f"Set at.count lower, or max_epochs to at least {count + 1}."
            )
    else:
        expect_whole("at.every", every, 1, "Set the epochs between two cuts.")
        epochs = [every * (index + 1) for index in range(count)]
    return epochs, {key: at[key] for key in ("growth", "start") if key in at}
