"""Sparsity laws: penalties on the normalization scales (gamma), applied while the network trains.

One law per file. `build` makes one by name; every law implements the protocol `Penalty`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from slim.errors import SlimError, expect_booleans, nearest
from slim.importing import callable_at
from slim.sparsity.forecast import Forecast, under_adaptive
from slim.sparsity.gammas import gamma_parameters
from slim.sparsity.group import group
from slim.sparsity.l0 import L0
from slim.sparsity.l1 import l1
from slim.sparsity.penalty import Penalty, Stochastic, check_methods, is_law
from slim.sparsity.polarization import polarization
from slim.sparsity.prox import prox
from slim.sparsity.step import Handle, install
from slim.sparsity.target import Target

LAWS: dict[str, Callable[..., Penalty]] = {
    "l1": l1,
    "prox": prox,
    "target": Target,
    "polarization": polarization,
    "group": group,
    "l0": L0,
}

__all__ = [
    "LAWS",
    "Forecast",
    "Handle",
    "Penalty",
    "Stochastic",
    "build",
    "find",
    "gamma_parameters",
    "install",
    "is_law",
    "under_adaptive",
]


def find(name: str) -> Callable[..., Penalty]:
    """What makes the law called ``name``: one of :data:`LAWS`, or a class at the import path ``package.module.Law``.

    Raises:
        SlimError: Nothing has this name; the nearest names are in the message.
    """
    if name in LAWS:
        return LAWS[name]
    if "." in name:
        return callable_at(name, "penalty.name")
    raise SlimError(f"penalty must be a known law. Got penalty={name}. {nearest(name, LAWS)} Set penalty.")


def build(name: str, **options: Any) -> Penalty:
    """A penalty by name, or by the import path of its class.

    Raises:
        SlimError: the law or one of its options is unknown, a value is out of range, or a class lacks a method of
            :class:`Penalty`.

    >>> build("l1", lam=1e-4).exact_zeros
    False
    """
    law = find(name)
    parameters = inspect.signature(law).parameters
    known = list(parameters)
    for option in options:
        if option not in known and all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            raise SlimError(
                f"penalty {name} has no option {option}. Got {option}={options[option]}. "
                f"{nearest(option, known)} Set penalty.<option>."
            )
    expect_booleans(law, options, "penalty")
    try:
        made = law(**options)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        given = ", ".join(f"{option}={str(value)[:40]}" for option, value in options.items())
        raise SlimError(
            f"Options of penalty {name} must have the right types. Got {given or 'none'} ({error}). Change penalty.*."
        ) from error
    check_methods(made, name)
    return made
