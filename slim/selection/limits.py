"""Limits of each layer: floors, caps, rounding and per-layer overrides by name pattern."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.errors import SlimError, expect, nearest

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

OVERRIDES = ("ratio", "max_layer_ratio", "min_channels", "round_to", "ignore")


@dataclass(frozen=True)
class Limits:
    """Limits per space of a graph, each (n_spaces,).

    Attributes:
        floor: Minimum number of channel groups that stay.
        round_to: The number of groups that stay is a multiple of this, if any is removed.
        ratio: Share of the space that is removed whatever the budget; NaN where the budget decides.
        ignored: Nothing is removed.
    """

    floor: npt.NDArray[np.int64]
    round_to: npt.NDArray[np.int64]
    ratio: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]


def limits(
    graph: ChannelGraph,
    *,
    min_channels: int = 1,
    max_layer_ratio: float = 1.0,
    round_to: int = 1,
    ignore: Iterable[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Limits:
    """The limits of every space; a later override takes precedence over an earlier one.

    A pattern is matched (fnmatch) against the names of all modules of a space; a container's name means its inside.

    Raises:
        SlimError: A value out of range, an unknown override, or a pattern that matches nothing.
    """
    check_limits(
        min_channels=min_channels,
        max_layer_ratio=max_layer_ratio,
        round_to=round_to,
        ignore=ignore,
        overrides=overrides,
    )
    n = len(graph.spaces)
    width = np.array([len(s.groups) for s in graph.spaces], dtype=np.int64)
    settings: dict[str, list[Any]] = {
        "min_channels": [min_channels] * n,
        "max_layer_ratio": [max_layer_ratio] * n,
        "round_to": [round_to] * n,
        "ratio": [math.nan] * n,
        "ignore": [False] * n,
    }
    if isinstance(ignore, str):
        ignore = (ignore,)
    patterns: list[tuple[str, Mapping[str, Any], str]] = [(p, {"ignore": True}, "ignore") for p in ignore]
    patterns += [(p, values, f"overrides[{p!r}]") for p, values in (overrides or {}).items()]
    for pattern, values, where in patterns:
        _apply_override(graph, settings, pattern, values, where)
    cap = np.asarray(settings["max_layer_ratio"], dtype=np.float64)
    # The subtraction is exact to an ulp only: 10 * (1 - 0.9) must ask for one channel, not two.
    floor = np.maximum(
        np.asarray(settings["min_channels"], dtype=np.int64), np.ceil(width * (1.0 - cap) - 1e-9).astype(np.int64)
    )
    return Limits(
        floor,
        np.asarray(settings["round_to"], dtype=np.int64),
        np.asarray(settings["ratio"], dtype=np.float64),
        np.asarray(settings["ignore"], dtype=bool),
    )


def check_limits(
    *,
    min_channels: Any = 1,
    max_layer_ratio: Any = 1.0,
    round_to: Any = 1,
    ignore: Any = (),
    overrides: Any = None,
) -> None:
    """Check the arguments of :func:`limits` as far as they are wrong for any network.

    Raises:
        SlimError: A value out of range, or of another type.
    """
    _integer("min_channels", min_channels)
    _share("max_layer_ratio", max_layer_ratio)
    _integer("round_to", round_to)
    expect("ignore", ignore, Iterable, "Set prune.ignore to a list of patterns.")
    expect("overrides", {} if overrides is None else overrides, Mapping, "Write {pattern: {ratio: 0.3}}.")


def _apply_override(
    graph: ChannelGraph, settings: dict[str, list[Any]], pattern: str, values: Mapping[str, Any], where: str
) -> None:
    """Set ``values`` in ``settings`` (lists over spaces) for every space that ``pattern`` names."""
    spaces = matching(graph, pattern, where)
    if not isinstance(values, Mapping):
        raise SlimError(
            f"An override is a mapping of settings. Got {values!r} ({where})."
            f" Write {{{pattern}: {{ratio: 0.3}}}} in prune.overrides."
        )
    for key, value in values.items():
        if key not in OVERRIDES:
            raise SlimError(
                f"An override sets {', '.join(OVERRIDES)}. Got {key}={value!r} ({where})."
                f" {nearest(str(key), OVERRIDES)} Change prune.overrides."
            )
        checked = _checked(key, value, where)
        for s in spaces:
            settings[key][s] = checked


def matching(graph: ChannelGraph, pattern: str, where: str) -> list[int]:
    """Indices of the spaces with a module that ``pattern`` names.

    Raises:
        SlimError: It names none; the nearest module names are in the message.
    """
    expect("pattern", pattern, str, f"Set prune.{where.split('[')[0]} to names of modules.")
    indices = [
        i
        for i, space in enumerate(graph.spaces)
        if any(fnmatchcase(m, pattern) or fnmatchcase(m, f"{pattern}.*") for m in (space.name, *space.modules))
    ]
    if not indices:
        names = [m for space in graph.spaces for m in space.modules]
        raise SlimError(
            f"A pattern must match a layer. Got pattern={pattern!r} ({where}), which matches none of {len(names)}."
            f" {nearest(pattern, names)} Change prune.{where.split('[')[0]}."
        )
    return indices


def _checked(key: str, value: Any, where: str) -> Any:
    if key == "ignore":
        if not isinstance(value, bool):
            raise SlimError(f"ignore must be true or false. Got ignore={value!r} ({where}). Change prune.overrides.")
        return value
    if key == "ratio":
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise SlimError(f"ratio must be in [0, 1). Got ratio={value!r} ({where}). Change prune.overrides.")
        return float(value)
    return _share(key, value) if key == "max_layer_ratio" else _integer(key, value)


def _integer(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value < 2**31:
        raise SlimError(f"{key} must be a whole number of at least 1 (32 bits). Got {key}={value!r}. Set prune.{key}.")
    return int(value)


def _share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise SlimError(f"{key} must be in [0, 1]. Got {key}={value!r}. Set prune.{key}.")
    return float(value)
