"""From plain nested dicts to frozen dataclasses: types, ranges and key names, every complaint in one go."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from slim.errors import SlimError, nearest

T = TypeVar("T")


def rule(text: str, holds: Callable[[Any], bool], advice: str = "", **kwargs: Any) -> Any:
    """A dataclass field whose value must satisfy ``holds``; ``text`` completes "<name> must be ..."."""
    return dataclasses.field(metadata={"text": text, "holds": holds, "advice": advice}, **kwargs)


def one_of(*options: str, **kwargs: Any) -> Any:
    """A text field with a fixed set of values."""
    return dataclasses.field(metadata={"options": options}, **kwargs)


def parse(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build ``cls`` from ``values``; nested dataclasses from nested dicts.

    Raises:
        SlimError: One line with everything that is wrong: unknown and missing keys (with near names), types, ranges.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Cut:
    ...     ratio: float = rule("in [0, 1)", lambda r: 0 <= r < 1, "Set {key} below 1.")
    >>> parse(Cut, {"ratio": 0.5})
    Cut(ratio=0.5)
    >>> parse(Cut, {"ratio": 1.0})
    Traceback (most recent call last):
    slim.errors.SlimError: ratio must be in [0, 1). Got ratio=1.0. Set ratio below 1.
    """
    faults: list[str] = []
    result = _parse(cls, values, "", faults)
    if faults:
        raise SlimError(" ".join(faults))
    return result  # type: ignore[return-value]


def _parse(cls: type[T], values: Mapping[str, Any], where: str, faults: list[str]) -> T | None:
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            faults.append(f"A configuration key must be known. Got {where}{key}. {nearest(str(key), fields)}")
    found: dict[str, Any] = {}
    before = len(faults)
    for name, field in fields.items():
        key = where + name
        if name not in values:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                faults.append(f"{key} must be set. Got nothing. Give {key}=<value>.")
            continue
        value = values[name]
        if dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                found[name] = _parse(hints[name], value, key + ".", faults)
            else:
                faults.append(f"{key} must be a group of keys. Got {key}={_shown(value)}. Set {key}.<key>=<value>.")
            continue
        fault = _fault(field, hints[name], key, value)
        if fault:
            faults.append(fault)
        else:
            found[name] = _converted(hints[name], value)
    return cls(**found) if len(faults) == before else None


def _fault(field: dataclasses.Field[Any], hint: Any, key: str, value: Any) -> str | None:
    options = field.metadata.get("options")
    if options and value not in options and not (value is None and _optional(hint)):
        return f"{key} must be one of {', '.join(options)}. Got {key}={_shown(value)}. {nearest(str(value), options)}"
    if not _is(hint, value):
        return f"{key} must be {_named(hint)}. Got {key}={_shown(value)}. Set {key} to {_named(hint)}."
    holds = field.metadata.get("holds")
    if holds and value is not None and not holds(value):
        advice = field.metadata["advice"].format(key=key) or f"Change {key}."
        name = key.rsplit(".", 1)[-1]
        return f"{name} must be {field.metadata['text']}. Got {name}={_shown(value)}. {advice}"
    return None


def _optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _is(hint: Any, value: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(arg, value) for arg in args)
    if hint is type(None):
        return value is None
    if hint is float:
        # An integer of YAML may be larger than any float.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        # What counts channels, steps or seeds fits an array of integers.
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_is(args[0], item) for item in value)
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, Any]):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return isinstance(value, hint)


def _converted(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    # Only where the field is a number in any case: 1 for a float is 1.0, so that equal runs have equal records.
    floats = hint is float or (_optional(hint) and float in get_args(hint) and int not in get_args(hint))
    return float(value) if floats and value is not None else value


def _named(hint: Any) -> str:
    names = {int: "a 64-bit integer", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_named(arg) for arg in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return f"a list (each {_named(get_args(hint)[0])})"
    return "a group of keys"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
