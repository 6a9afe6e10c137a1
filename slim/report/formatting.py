"""Numbers as people read them: one rule per unit, the same in the terminal, in Markdown and in figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

MISSING = "-"

LABELS = {
    "dense": "dense",
    "sparse": "sparse",
    "masked": "masked",
    "rebuilt": "rebuilt",
    "recovered": "recovered",
    "restarted": "restarted",
    "finetuned": "fine-tuned",
}
"""The networks of one run in the order they come to be, and the word a reader sees."""


def number(value: Any) -> float | None:
    """``value`` as a finite float, or ``None`` when it is missing, NaN, infinite or no number.

    >>> number(3), number(None), number(float("nan")), number("x")
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # A whole number may be larger than any float.
    return float(value) if abs(value) <= sys.float_info.max else None


def count(value: Any) -> str:
    """A count with three significant digits or more.

    >>> count(5504), count(20035018), count(398136320), count(2_250_000), count(None)
    ('5504', '20.04 M', '398.1 M', '2.25 M', '-')
    """
    amount = number(value)
    if amount is None:
        return MISSING
    # From ten thousand on in units: up to there every digit of a channel count matters.
    for limit, scale, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(amount) >= limit:
            shown = amount / scale
            return f"{shown:.{1 if abs(shown) >= 100 else 2}f} {unit}"
    return f"{amount:.0f}" if amount == int(amount) else f"{amount:.2f}"


def percent(value: Any, digits: int = 2) -> str:
    """A fraction in [0, 1] as a percentage.

    >>> percent(0.93771), percent(None)
    ('93.77%', '-')
    """
    amount = number(value)
    return MISSING if amount is None else f"{100 * amount:.{digits}f}%"


def millis(value: Any) -> str:
    """Milliseconds with three significant digits.

    >>> millis(0.1234), millis(12.345), millis(1234.5), millis(None)
    ('0.123 ms', '12.3 ms', '1234 ms', '-')
    """
    amount = number(value)
    if amount is None:
        return MISSING
    digits = 3 if amount < 1 else 2 if amount < 10 else 1 if amount < 100 else 0
    return f"{amount:.{digits}f} ms"


def seconds(value: Any) -> str:
    """A duration.

    >>> seconds(4.21), seconds(75), seconds(7322), seconds(None)
    ('4.2 s', '1 min 15 s', '2 h 02 min', '-')
    """
    amount = number(value)
    if amount is None:
        return MISSING
    if amount < 59.95:
        return f"{amount:.1f} s"
    whole = round(amount)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def change(value: Any, before: Any) -> str:
    """How much of ``before`` went or came, as a signed percentage; empty when nothing changed or nothing is known.

    >>> change(30, 100), change(110, 100), change(5, 5), change(None, 3)
    ('-70.0%', '+10.0%', '', '')
    """
    now, then = number(value), number(before)
    if now is None or then is None or then == 0 or now == then:
        return ""
    return f"{100 * (now / then - 1):+.1f}%"


def points(value: Any, before: Any) -> str:
    """Difference of two accuracies in percentage points.

    >>> points(0.931, 0.938), points(0.3, 0.9), points(None, 1.0)
    ('-0.70 pt', '-60.0 pt', '')
    """
    now, then = number(value), number(before)
    if now is None or then is None:
        return ""
    moved = 100 * (now - then)
    return f"{moved:+.{2 if abs(moved) < 9.995 else 1}f} pt"


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level with dotted keys; lists become text.

    >>> flat({"prune": {"ratio": 0.6}, "phases": ["sparse", "prune"], "seed": 0})
    {'prune.ratio': 0.6, 'phases': 'sparse, prune', 'seed': 0}
    """
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{key}."))
        elif isinstance(value, (list, tuple)):
            out[f"{prefix}{key}"] = ", ".join(str(item) for item in value)
        else:
            out[f"{prefix}{key}"] = value
    return out
