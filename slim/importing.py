"""Imports: a callable by its dotted path, with errors a user can act on, and few collections while much is imported."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from slim.errors import SlimError, nearest


@contextmanager
def seldom_collected() -> Iterator[None]:
    """For imports: half a million objects that stay, through which the garbage collector would walk over and over."""
    usual = gc.get_threshold()
    gc.set_threshold(20_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def callable_at(path: Any, name: str) -> Callable[..., Any]:
    """Import a class or a function.

    Args:
        path: Such as ``torch.optim.SGD``.
        name: Of what holds the path, such as ``optimizer._target_``, for the message.

    Raises:
        SlimError: No such thing can be imported, or it is not callable.

    >>> callable_at("torch.optim.SGD", "optimizer._target_").__name__
    'SGD'
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise SlimError(f"{name} must be a dotted path. Got {path!r}. Set it to package.name.")
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # Only a missing prefix of the path itself means "try a shorter prefix".
            if error.name and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise SlimError(f"{name} must be importable. Got {path} ({error}). Install it.") from error
        except Exception as error:  # a user's module may fail in any way
            line = f"{type(error).__name__}: {error}"
            raise SlimError(f"{name} must be importable. Got {path} ({line}). Mend it, or install it.") from error
        for part in parts[split:]:
            if not hasattr(found, part):
                public = [known for known in getattr(found, "__all__", dir(found)) if not known.startswith("_")]
                raise SlimError(f"{name} must exist. Got {path} without {part!r}. {nearest(part, public)}")
            found = getattr(found, part)
        if not callable(found):
            raise SlimError(f"{name} must be a class or function to call. Got {path}. Set it to one.")
        return found  # type: ignore[no-any-return]
    raise SlimError(f"{name} must be importable. Got {path}. Install {parts[0]} or correct the path.")
