"""Schedules: the number of cuts that reach a budget, and the weights each thin network continues with. Pure functions.

A run executes the passes of :func:`passes` in order: train (sparse), cut to ``amount``, then
train (finetune) from ``weights``. Amounts are shares of the *dense* network; :func:`relative` turns one into the budget
of the network at hand. Names and sources:

- ``one_shot``: one cut (Liu et al. 2017).
- ``iterative``: several, growing linearly or cubically (the paper's multi-pass scheme; Zhu & Gupta 2017,
  arXiv:1710.01878, for the cubic).
- ``soft``: during sparse training the selected channels are scaled down every ``every`` epochs and may recover; the cut
  comes at the end (He et al. 2018, arXiv:1808.06866). See :mod:`slim.selection.soft`.
- ``rewind``: the thin network starts again from its own weights at ``rewind_epoch`` of the first training, 0 being
  initialisation (Frankle & Carbin 2019, arXiv:1803.03635; Frankle et al. 2019, arXiv:1903.01611). A control.
- ``scratch``: the thin network starts from fresh random weights (Liu et al. 2019, arXiv:1810.05270). A control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slim.errors import SlimError, expect_number, nearest

SCHEDULES = ("one_shot", "iterative", "soft", "rewind", "scratch")
GROWTHS = ("linear", "cubic")


@dataclass(frozen=True)
class Pass:
    """One cut of a schedule.

    Attributes:
        amount: Budget of the whole run so far, in the terms of the run's target: ``ratio`` removed of, or fraction of
            the cost kept of, the dense network.
        weights: Weights the thin network continues with: ``trained`` (those of the cut), ``rewound`` or ``fresh``.
        rewind_epoch: Epoch of the first training whose weights ``rewound`` takes; 0 is initialisation.
        soft_every: Epochs between soft cuts during the training before this cut; 0: none.
    """

    amount: float
    weights: str = "trained"
    rewind_epoch: int = 0
    soft_every: int = 0


def passes(
    name: str = "one_shot",
    *,
    kind: str,
    amount: float,
    count: int = 1,
    growth: str = "linear",
    start: float | None = None,
    rewind_epoch: int = 0,
    every: int = 1,
) -> tuple[Pass, ...]:
    """The passes of a schedule.

    Args:
        name: One of ``one_shot``, ``iterative``, ``soft``, ``rewind``, ``scratch``.
        kind: ``ratio``, ``macs``, ``params``, ``memory`` or ``latency``: what ``amount`` is a share of.
        amount: The run's budget: a ratio removed in [0, 1), or a fraction kept in (0, 1]. With one cut also an absolute
            cost above 1.
        count: Passes of ``iterative``; ``rewind`` and ``scratch`` may be iterative too.
        growth: How the removed share grows over the passes.
        start: Share that the first pass removes; ``count`` equal steps from zero by default.
        rewind_epoch: Of ``rewind``.
        every: Epochs between the soft cuts of ``soft``.

    Raises:
        SlimError: A value out of range, or ``count`` above 1 where there is one cut by definition.

    >>> [round(p.amount, 2) for p in passes("iterative", kind="ratio", amount=0.5, count=9, start=0.1)]
    [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    >>> [round(p.amount, 3) for p in passes("iterative", kind="macs", amount=0.5, count=3, growth="cubic")]
    [0.648, 0.519, 0.5]
    """
    _check_schedule(name, growth, count=count, rewind_epoch=rewind_epoch, every=every)
    after: dict[str, Any] = {
        "weights": {"rewind": "rewound", "scratch": "fresh"}.get(name, "trained"),
        "rewind_epoch": rewind_epoch if name == "rewind" else 0,
        "soft_every": every if name == "soft" else 0,
    }
    if count == 1 and start is None and kind != "ratio" and amount > 1:
        return (Pass(float(amount), **after),)
    gone = _removed_share(kind, amount)
    if start is not None:
        expect_number("start", start, "(0, 1)", "Set schedule.start.")
    if start is not None and start > gone:
        raise SlimError(
            f"start must be at most what the run removes, {gone:g}. Got start={start!r}. Set schedule.start."
        )
    first = gone / count if start is None and growth == "linear" else start
    # The last amount is the budget as given; 1 - (1 - amount) could differ in the last bit.
    amounts = [share if kind == "ratio" else 1.0 - share for share in _shares(gone, count, growth, first)]
    return tuple(Pass(each, **after) for each in [*amounts[:-1], float(amount)])


def _check_schedule(name: str, growth: str, **numbers: int) -> None:
    """Raise for an unknown name or growth, a number out of range, or several cuts where the schedule has one."""
    if name not in SCHEDULES:
        raise SlimError(
            f"schedule must be one of {', '.join(SCHEDULES)}. Got schedule={name!r}. {nearest(str(name), SCHEDULES)}"
            " Set schedule.name."
        )
    if growth not in GROWTHS:
        raise SlimError(f"growth must be one of {', '.join(GROWTHS)}. Got growth={growth!r}. Set schedule.growth.")
    for key, value in numbers.items():
        least = 0 if key == "rewind_epoch" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SlimError(
                f"{key} must be a whole number of at least {least}. Got {key}={value!r}. Set schedule.{key}."
            )
    if numbers["count"] > 1 and name in ("one_shot", "soft"):
        raise SlimError(
            f"Schedule {name} cuts once. Got count={numbers['count']}. Set schedule=iterative, or schedule.count=1."
        )


def relative(kind: str, amount: float, before: float | None) -> float:
    """The budget of a network already cut to ``before`` with which ``amount`` of the dense network is reached.

    Args:
        kind: As in :func:`passes`.
        amount: The budget of the next cut, as a share of the dense network.
        before: The ``amount`` of the previous pass, or what it achieved; None for the dense network.

    >>> relative("ratio", 0.5, 0.2), relative("macs", 0.4, 0.8), relative("ratio", 0.5, None)
    (0.375, 0.5, 0.5)
    """
    if before is None:
        return amount
    if kind == "ratio":
        return max(0.0, 1.0 - (1.0 - amount) / (1.0 - before))
    return min(1.0, amount / before)


def limits_due(limits: Mapping[str, Any], kind: str, amount: float, whole: float) -> dict[str, Any]:
    """Limits of a cut to ``amount`` on the way to ``whole``: as much of a layer's own ratio is due as of the budget.

    >>> limits_due({"overrides": {"head": {"ratio": 0.6}}}, "macs", 0.75, 0.5)
    {'overrides': {'head': {'ratio': 0.3}}}
    """
    if amount == whole or not limits.get("overrides"):
        return dict(limits)
    share = amount / whole if kind == "ratio" else (1 - amount) / (1 - whole)
    return {**limits, "overrides": overrides_due(limits["overrides"], share)}


def overrides_due(overrides: Mapping[str, Mapping[str, Any]], share: float) -> dict[str, Mapping[str, Any]]:
    """Overrides of layers, of whose own ratios ``share`` in [0, 1] is due; wrong ones stay, to be refused as given."""

    def due(rule: Any) -> Any:
        has_ratio = isinstance(rule, Mapping) and isinstance(rule.get("ratio"), int | float)
        return {**rule, "ratio": share * rule["ratio"]} if has_ratio else rule

    return {name: due(rule) for name, rule in overrides.items()}


def _removed_share(kind: str, amount: float) -> float:
    """The share that the run removes, in [0, 1)."""
    if kind == "ratio":
        if not 0 <= amount < 1:
            raise SlimError(f"ratio must be in [0, 1). Got ratio={amount!r}. Set prune.ratio below 1.")
        return float(amount)
    if not 0 < amount <= 1:
        raise SlimError(
            f"A schedule needs a fraction kept, in (0, 1]. Got {kind}={amount!r}. Set prune.{kind} to a fraction."
        )
    return 1.0 - float(amount)


def _shares(gone: float, count: int, growth: str, first: float | None) -> list[float]:
    """The share removed after each pass; the last is ``gone`` exactly."""
    if count == 1:
        return [gone]
    if growth == "linear":
        begin = float(first or 0.0)
        return [begin + (gone - begin) * i / (count - 1) for i in range(count - 1)] + [gone]
    # Zhu & Gupta, equation 1, from zero (or from ``start`` at the first pass).
    if first is None:
        return [gone * (1.0 - (1.0 - i / count) ** 3) for i in range(1, count)] + [gone]
    return [gone + (first - gone) * (1.0 - i / (count - 1)) ** 3 for i in range(count - 1)] + [gone]
