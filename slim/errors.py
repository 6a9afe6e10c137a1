"""The one family of errors a user ever sees.

Every message is a single line: *rule. Got name=value (where). What to change, with the config key.*
"""

from __future__ import annotations

import difflib
import inspect
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class SlimError(Exception):
    """Something the user can mend: a bad value, file, model or plan. ``train.py`` prints it and exits with 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        # A message is one line, whatever text of another library was quoted in it.
        super().__init__(" ".join(of_worker(str(message)).split()))


class RunFailed(SlimError):
    """The request was fine, the run was not (diverged, out of memory, disk full). Exits with 1."""

    exit_code = 1


def of_worker(text: str) -> str:
    """What an exception said in a data loader's worker, without the traceback that torch puts before it.

    >>> of_worker("Caught ValueError in DataLoader worker process 0.\\nOriginal ...\\nValueError: no image\\n")
    'no image'
    """
    name = re.match(r"Caught (\w+) in DataLoader worker process", text)
    return text if name is None else text.rpartition(f"{name[1]}: ")[2].strip()


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """A hint that names the closest of ``options``.

    >>> nearest("gama", ["gamma", "l1", "random"])
    'Did you mean gamma?'
    >>> nearest("xyz", ["l1", "l2"])
    'Known: l1, l2.'
    """
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"Known: {shown}."


def shown(name: str, value: Any) -> str:
    """``name=value`` for a message; of a value that may be large, its type.

    >>> shown("ratio", 2), shown("loader", [1, 2])
    ('ratio=2', 'loader of type list')
    """
    if isinstance(value, str):
        return f"{name}={value[:80]!r}"
    plain = value is None or isinstance(value, numbers.Number)
    return f"{name}={value!r}" if plain else f"{name} of type {type(value).__name__}"


def expect(name: str, value: Any, kind: type, hint: str) -> None:
    """Refuse an argument of another type.

    Args:
        name: Of the argument.
        value: What was given.
        kind: What it must be.
        hint: What to give instead.

    Raises:
        SlimError: ``value`` is no ``kind``.

    >>> expect("plan", 3, dict, "Give one.")
    Traceback (most recent call last):
    slim.errors.SlimError: plan must be a dict. Got plan=3. Give one.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        raise SlimError(f"{name} must be {article} {kind.__name__}. Got {shown(name, value)}. {hint}")


def expect_booleans(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> None:
    """Refuse text for what ``function`` annotates as ``bool``: "no" would be true.

    Args:
        function: Whose signature can be read.
        options: Of it, by name.
        key: Of the configuration, that holds them.

    Raises:
        SlimError: It names the first such option.

    >>> expect_booleans(nearest, {"count": "no"}, "penalty")
    """
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation in (bool, "bool") and isinstance(options.get(name), str):
            got = shown(name, options[name])
            raise SlimError(f"{key}.{name} must be true or false. Got {got}. Set {key}.{name} to one of them.")


def expect_whole(name: str, value: Any, least: int, hint: str) -> None:
    """Refuse anything but a whole number of at least ``least``; True and False are none.

    >>> expect_whole("every", 1.5, 1, "Set it to 1.")
    Traceback (most recent call last):
    slim.errors.SlimError: every must be a whole number of at least 1. Got every=1.5. Set it to 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise SlimError(f"{name} must be a whole number of at least {least}. Got {shown(name, value)}. {hint}")


def expect_number(name: str, value: Any, interval: str, hint: str) -> None:
    """Refuse anything but a number in ``interval``, which is written like ``[0, 1)``; True and False are none.

    >>> expect_number("weight", "half", "[0, 1]", "Set it to 0.5.")
    Traceback (most recent call last):
    slim.errors.SlimError: weight must be a number in [0, 1]. Got weight='half'. Set it to 0.5.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else float("nan")
    inside = low < number < high or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")
    if not inside:
        raise SlimError(f"{name} must be a number in {interval}. Got {shown(name, value)}. {hint}")
