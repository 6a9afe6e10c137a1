"""Validation of data options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slim.errors import SlimError

AUGMENTATIONS = ("none", "crop", "zoom")


def integer(name: str, value: Any, least: int) -> int:
    """``value`` as a whole number of at least ``least``.

    Raises:
        SlimError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SlimError(f"{name} must be a whole number of at least {least}. Got {name}={value!r}. Set data.{name}.")
    return value


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise SlimError(f"{name} must be true or false. Got {name}={value!r}. Set data.{name} to one of them.")
    return value


def switch(name: str, value: Any) -> bool | None:
    """True, false, or None for the data set's own."""
    if value is not None and not isinstance(value, bool):
        raise SlimError(f"{name} must be true, false or null. Got {name}={value!r}. Set data.{name} to one of them.")
    return value


def limit(name: str, value: Any) -> int | None:
    """A number of images of at least 1, or None for all."""
    return None if value is None else integer(name, value, 1)


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise SlimError(f"{name} must be in [0, 1). Got {name}={value!r}. Set data.{name} below 1.")
    return float(value)


def gigabytes(name: str, value: Any) -> float:
    """A number of gigabytes, 0 or more, as bytes."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
        raise SlimError(f"{name} must be at least 0. Got {name}={value!r}. Set data.{name}, in GB.")
    return float(value) * 1e9


def augmentation(value: Any) -> str:
    """One of :data:`AUGMENTATIONS`; true is ``crop``, false ``none``.

    >>> augmentation(True), augmentation(False), augmentation("zoom")
    ('crop', 'none', 'zoom')
    """
    if isinstance(value, bool):
        return "crop" if value else "none"
    if value not in AUGMENTATIONS:
        raise SlimError(
            f"augment must be true, false or one of {', '.join(AUGMENTATIONS)}. Got augment={value!r}. "
            "Set data.augment."
        )
    return str(value)


def per_channel(name: str, value: Sequence[float] | None, channels: int, positive: bool) -> tuple[float, ...] | None:
    """One finite number per channel, or None."""
    if value is None:
        return None
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != channels or not all(math.isfinite(n) and (n > 0 or not positive) for n in numbers):
        raise SlimError(
            f"{name} must hold {channels} {'positive ' if positive else ''}number{'s' * (channels != 1)}, one per "
            f"channel. Got {name}={value!r}. Set data.{name} or leave it null."
        )
    return numbers
