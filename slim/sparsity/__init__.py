"""Sparsity laws: pressure on the normalization scales (gamma) while the network trains.

One law per file. `build` makes one by name; every law offers what `Penalty` lists.
"""

from __future__ import annotations

from typing import Any

from slim.errors import SlimError, nearest
from slim.sparsity.forecast import Forecast
from slim.sparsity.gammas import gamma_parameters
from slim.sparsity.group import Group
from slim.sparsity.l0 import L0
from slim.sparsity.l1 import L1
from slim.sparsity.penalty import Drawn, Penalty
from slim.sparsity.polarization import Polarization
from slim.sparsity.prox import Prox
from slim.sparsity.target import Target

LAWS: dict[str, type[Penalty]] = {
    "l1": L1,
    "prox": Prox,
    "target": Target,
    "polarization": Polarization,
    "group": Group,
    "l0": L0,
}

__all__ = ["LAWS", "Drawn", "Forecast", "Penalty", "build", "gamma_parameters"]


def build(name: str, **options: Any) -> Penalty:
    """A penalty by name.

    Raises:
        SlimError: the law or one of its options is unknown, or a value is out of range.

    >>> build("l1", lam=1e-4).exact_zeros
    False
    """
    if name not in LAWS:
        raise SlimError(f"penalty must be a known law. Got penalty={name}. {nearest(name, LAWS)} Set penalty.")
    law = LAWS[name]
    known = [k for k in law.__init__.__annotations__ if k != "return"]
    for option in options:
        if option not in known:
            raise SlimError(
                f"penalty {name} has no option {option}. Got {option}={options[option]}. "
                f"{nearest(option, known)} Set penalty.<option>."
            )
    return law(**options)
