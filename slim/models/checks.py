"""Validation of the sizes that builders take."""

from __future__ import annotations

from slim.errors import SlimError


def integer(name: str, value: object, key: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``.

    >>> integer("depth", 19, "model.depth")
    19

    Raises:
        SlimError: it is not one; the message names the configuration ``key``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SlimError(f"{name} must be a whole number of at least {least}. Got {name}={value!r}. Set {key}.")
    return value


def blocks_per_stage(depth: object, step: int, rest: int, family: str, example: int) -> int:
    """Blocks per stage of a network whose depth is ``step * n + rest``.

    >>> blocks_per_stage(164, 9, 2, "preresnet", 164)
    18

    Raises:
        SlimError: the depth has another form.
    """
    count = integer("depth", depth, "model.depth")
    if count <= rest or (count - rest) % step:
        raise SlimError(
            f"depth of {family} must be {step}n+{rest}. Got depth={depth!r}. Set model.depth, for example to {example}."
        )
    return (count - rest) // step
