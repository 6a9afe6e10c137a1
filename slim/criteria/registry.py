"""Criteria by name. A criterion is a function that yields the importance of channels.

A criterion yields *evidence*: pairs ``(groups, values)`` with one value per channel of some axis, ``groups`` (C,) the
channel group of every channel (-1 where there is none) and ``values`` (C,), small for unimportant channels. Evidence
about the same group from several places is reduced to one score by :func:`slim.criteria.score`. A group without
evidence is not covered, and stays.

    from slim.criteria import criterion

    @criterion("gamma_squared")
    def gamma_squared(graph):
        for scale in graph.scales:
            yield scale.groups, graph.model.get_parameter(scale.weight).detach() ** 2
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from slim.errors import SlimError, nearest
from slim.importing import callable_at

Evidence = Iterable[tuple[Any, Any]]
Rank = Callable[..., Evidence]


@dataclass(frozen=True)
class Criterion:
    """A named way to rank channels: its function, and how evidence about one group is reduced by default."""

    name: str
    rank: Rank
    reduce: str = "mean"


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, reduce: str = "mean") -> Callable[[Rank], Rank]:
    """Register the decorated function as the criterion ``name``.

    Args:
        name: The name users give, as in ``slim.score(graph, "gamma")``.
        reduce: ``mean``, ``max``, ``sum`` or ``l2`` over the evidence about one group; users can override it.
    """

    def register(rank: Rank) -> Rank:
        CRITERIA[name] = Criterion(name, rank, reduce)
        return rank

    return register


def find(which: str | Rank) -> Criterion:
    """The criterion called ``which``; a function, or its import path ``package.module.function``, is one too.

    Raises:
        SlimError: Nothing has this name; the nearest names are in the message.
    """
    if not isinstance(which, str):
        if not callable(which):
            raise SlimError(
                f"A criterion is a name or a function. Got criterion={which!r}."
                f" Set criterion.name to one of {', '.join(sorted(CRITERIA))}."
            )
        known = [c for c in CRITERIA.values() if c.rank is which]
        return known[0] if known else Criterion(getattr(which, "__name__", "custom"), which)
    if which in CRITERIA:
        return CRITERIA[which]
    if "." in which:
        return find(callable_at(which, "criterion.name"))
    raise SlimError(f"No such criterion. Got criterion={which!r}. {nearest(which, CRITERIA)} Set criterion.name.")


def needs_data(which: str | Rank) -> bool:
    """Whether a criterion looks at data: whether it takes a ``loader``.

    >>> needs_data("gamma")
    False
    """
    return "loader" in inspect.signature(find(which).rank).parameters
