"""From ``_target_`` and keyword arguments to an object, with errors a user can act on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from slim.errors import SlimError, expect_booleans, nearest
from slim.importing import callable_at


def target(path: Any, key: str) -> Callable[..., Any]:
    """Import a callable by its dotted path.

    Args:
        path: Such as ``torch.optim.SGD``.
        key: The configuration key that holds it, for the message.

    Raises:
        SlimError: No such thing can be imported, or it is not callable.

    >>> target("torch.optim.SGD", "optimizer").__name__
    'SGD'
    """
    return callable_at(path, f"{key}._target_")


def check(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> None:
    """Refuse options that ``function`` does not take, with the nearest names, and text where it wants a boolean.

    >>> check(dict.fromkeys, {}, "data")
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    expect_booleans(function, options, key)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            known = [name for name in parameters if name != "self"]
            raise SlimError(
                f"{key}.{option} must be an option of {function.__name__}. Got {option}={options[option]}. "
                f"{nearest(str(option), known)}"
            )


def construct(spec: Mapping[str, Any], key: str, *args: Any, **extra: Any) -> Any:
    """Call ``spec["_target_"]`` with the other entries of ``spec`` and ``extra`` (which wins).

    Raises:
        SlimError: Unknown target or option, or the call failed; the cause is quoted in one line.
    """
    options = {name: value for name, value in spec.items() if name != "_target_"} | extra
    function = target(spec.get("_target_"), key)
    check(function, options, key)
    try:
        return function(*args, **options)
    except SlimError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise SlimError(f"{key} must be buildable. Got {spec['_target_']}: {error} Change {key}.*.") from error
