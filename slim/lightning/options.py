"""Arguments of the callbacks, checked when they are constructed: better refused now than after hours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from slim.channels import trace
from slim.errors import SlimError, expect, expect_whole, nearest
from slim.lightning.network import Network, check_network
from slim.selection import LIMITS, check_options, target_of
from slim.sparsity import LAWS, Penalty, Stochastic, find, is_law
from slim.sparsity.penalty import check_methods

BUDGETS = ("ratio", "macs", "params", "memory", "latency")


@dataclass(frozen=True)
class Recovery:
    """What is repaired around a cut; see :func:`slim.recovery.recover`.

    Attributes:
        absorb: Move what removed channels contribute into the next layer.
        least_squares: Batches to refit on what reads removed channels; 0: not at all.
        batches: To recalibrate BatchNorm on; 0: not at all.
        evaluate: Network to a figure, higher is better: keeps a step only if it helps.
    """

    absorb: bool = True
    least_squares: int = 0
    batches: int = 100
    evaluate: Callable[[nn.Module], float] | None = None

    def __post_init__(self) -> None:
        expect("recover.absorb", self.absorb, bool, "Set it to True or False.")
        expect_whole("recover.least_squares", self.least_squares, 0, "Set the number of batches, 0 for none.")
        expect_whole("recover.batches", self.batches, 0, "Set the number of batches, 0 for none.")
        if self.evaluate is not None and not callable(self.evaluate):
            raise SlimError(
                f"evaluate must be a function of a network. Got recover.evaluate={self.evaluate!r}. "
                "Set one that returns a figure, higher is better."
            )

    @classmethod
    def of(cls, given: bool | Mapping[str, Any]) -> Recovery:
        """True: all but least squares. False, or an empty dict: nothing. A dict: some of the attributes.

        Raises:
            SlimError: Something else, or an unknown name.
        """
        if not given:
            return cls(absorb=False, batches=0)
        if given is True:
            return cls()
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise SlimError(
                f"recover must be True, False or a dict of {', '.join(known)}. Got {given!r}. "
                'Set for example recover={"batches": 50}.'
            )
        for key in given:
            if key not in known:
                hint = nearest(str(key), known)
                raise SlimError(f"recover takes {', '.join(known)}. Got recover.{key}={given[key]!r}. {hint}")
        return cls(**given)


def check_arguments(budget: Mapping[str, Any], zeros: bool, every: int | None, limits: Mapping[str, Any]) -> None:
    """Check that there is exactly one budget, or ``zeros`` with ``every``, and that all options are known.

    Raises:
        SlimError: Otherwise.
    """
    shown = ", ".join(f"{kind}={amount}" for kind, amount in budget.items()) or "none"
    expect("zeros", zeros, bool, "Set zeros=True with every=1, or a budget alone.")
    if zeros and (budget or every is None):
        raise SlimError(
            f"zeros removes exact zeros every so many epochs and takes no budget. Got every={every}, budget: {shown}. "
            "Set zeros=True with every=1, or a budget alone."
        )
    if not zeros and (len(budget) != 1 or every is not None):
        raise SlimError(
            f"ChannelPruning needs exactly one budget of {', '.join(BUDGETS)}. Got {shown}, every={every}. "
            "Set one of them, like macs=0.5; every belongs to zeros=True."
        )
    check_options(limits)
    if zeros:
        expect_whole("every", every, 1, "Set it to 1.")
        for name in [name for name in limits if name not in LIMITS]:
            raise SlimError(
                f"zeros takes {', '.join(LIMITS)}. Got {name}={limits[name]!r}. Leave it out, or set a budget."
            )
    target_of(**budget)


def check_criterion(criterion: Any) -> None:
    """Check that a criterion is a name, a function, or a dict of its name and options.

    Raises:
        SlimError: Otherwise.
    """
    options = criterion if isinstance(criterion, Mapping) else {"name": criterion}
    if not isinstance(options.get("name"), str) and not callable(options.get("name")):
        raise SlimError(
            f"criterion must be a name, a function, or a dict of name and options. Got criterion={criterion!r}. "
            'Set for example criterion={"name": "taylor", "batches": 8}.'
        )
    if "batches" in options:
        expect_whole("criterion.batches", options["batches"], 1, "Set it to 8.")


def check_place(network: Any, tracing: Any = None) -> None:
    """Check what says where a callback works: which network, and the options of :func:`slim.trace`.

    Raises:
        SlimError: Neither a path nor a function, or an unknown option.
    """
    check_network(network)
    known = list(inspect.signature(trace).parameters)[2:]
    if tracing is not None and not isinstance(tracing, Mapping):
        raise SlimError(
            f"trace must be a dict of {', '.join(known)}. Got trace={tracing!r}. "
            'Set for example trace={"residual": "keep"}.'
        )
    for name, value in (tracing or {}).items():
        if name not in known:
            raise SlimError(f"trace takes {', '.join(known)}. Got trace.{name}={value!r}. {nearest(str(name), known)}")


def networks_of(copies: Any) -> tuple[Network, ...]:
    """The ``copies`` of a callback.

    Raises:
        SlimError: They are no list, or one of them cannot name a network.
    """
    if isinstance(copies, str | nn.Module) or not isinstance(copies, Iterable):
        example = copies if isinstance(copies, str) else "teacher"
        raise SlimError(f"copies must be a list of networks. Got copies={copies!r}. Set copies=[{example!r}].")
    found = tuple(copies)
    for each in found:
        check_network(each)
    return found


def check_law(penalty: Any) -> None:
    """Check that a penalty is the name of a law or a law; :func:`slim.sparsity.build` knows the names.

    Raises:
        SlimError: Otherwise, also of a class of laws.
    """
    if not isinstance(penalty, str) and not is_law(penalty):
        raise SlimError(
            f"penalty must be the name of a law, or a law. Got penalty={penalty!r}. "
            f"Set one of {', '.join(LAWS)}, or what slim.sparsity.build returns."
        )
    if not isinstance(penalty, str):
        check_methods(penalty, type(penalty).__name__)


def check_shrinks_by_lam(shrink: float, penalty: Any, law: Penalty, options: Mapping[str, Any]) -> None:
    """Refuse ``shrink`` for a law without a lam above 0 that shrinks scales.

    A function of its own: LightningCLI takes an option that a constructor asks of its ``**options`` for an argument,
    and gives its default to every law.

    Raises:
        SlimError: It has none.
    """
    by_lam = isinstance(penalty, str) and "lam" in inspect.signature(find(penalty)).parameters
    if not by_lam or isinstance(law, Stochastic) or options.get("lam") == 0:
        raise SlimError(
            f"shrink must scale a lam above 0. Got shrink={shrink}, penalty={penalty!r}, "
            f"lam={options.get('lam', 'default')}. "
            "Give the name of a law that shrinks scales by its lam (l1, prox, ...), or leave shrink out."
        )
