"""One score per channel group: reduce a criterion's evidence, normalize across layers, check the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slim.channels import ChannelGraph
from slim.criteria.normalize import normalize_scores
from slim.criteria.registry import Rank, find
from slim.criteria.unscaled import rank_unscaled, unranked_note
from slim.errors import SlimError, expect, expect_booleans, nearest

REDUCTIONS = ("mean", "max", "sum", "l2")


@dataclass(frozen=True)
class Scores:
    """Importance of every channel group of a graph; small goes first.

    Attributes:
        values: (n_groups,) float64; 0 where a group is not covered.
        covered: (n_groups,) bool; a group without evidence is not covered and stays.
        counts: (n_groups,) int64; weight of the group in ``ratio``: the number of its normalization scales, or 1 for a
            covered group without any; 0 for that where some scales are exactly zero, as a law leaves its choice.
        criterion: Name of the criterion.
        notes: One line for whatever it could not rank itself.
    """

    values: npt.NDArray[np.float64]
    covered: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.int64]
    criterion: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        seen = self.values[self.covered]
        span = f", {seen.min():.4g} to {seen.max():.4g}" if seen.size else ""
        return f"Scores({self.criterion}: {len(seen)} of {len(self)} groups{span})"


def score(
    graph: ChannelGraph,
    criterion: str | Rank = "gamma",
    *,
    normalize: str = "none",
    reduce: str | None = None,
    **options: Any,
) -> Scores:
    """Rank the channel groups of ``graph``; pure, the model is left bit for bit as it was.

    Args:
        graph: What :func:`slim.trace` returned.
        criterion: A registered name (``gamma``, ``l1``, ``taylor``, ...), a function, or its import path.
        normalize: How layers are made comparable: ``none``, ``max``, ``mean``, ``standard``, ``per_mac`` or
            ``per_param``; see :func:`slim.criteria.normalize.normalize_scores`.
        reduce: ``mean``, ``max``, ``sum`` or ``l2`` over the evidence about one group; the criterion's own by default.
        options: The criterion's own options, e.g. ``loader=...`` and ``batches=8`` for data-driven ones.

    Raises:
        SlimError: Unknown criterion, option or normalization; nothing to rank; scores that are not numbers.
    """
    expect("graph", graph, ChannelGraph, "Use slim.trace.")
    entry = find(criterion)
    how = entry.reduce if reduce is None else reduce
    if how not in REDUCTIONS:
        raise SlimError(
            f"reduce must be one of {', '.join(REDUCTIONS)}. Got reduce={how!r}."
            f" {nearest(str(how), REDUCTIONS)} Set criterion.reduce."
        )
    _check_options(entry.name, entry.rank, options)
    values, covered = reduce_evidence(entry.rank(graph, **options), len(graph), how)
    _inherit_scores(graph, values, covered)
    if not covered.any():
        another = "Set criterion to one that reads what this network has, like l1."
        raise SlimError(
            f"The criterion finds no channel to rank. Got criterion={entry.name!r} on a network with {len(graph)}"
            " channel groups and none that it covers. "
            + (another if graph.prunable.any() and entry.name != "l1" else "graph.report() says why channels stay.")
        )
    _check_numbers(graph, entry.name, values, covered)
    if normalize != "none":
        values = normalize_scores(graph, values, covered, normalize)
    if entry.name != "gamma":
        notes = unranked_note(graph, covered, entry.name)
        return Scores(values, covered, scale_counts(graph, covered), entry.name, notes)
    values, covered, counted, note = rank_unscaled(graph, values, covered)
    return Scores(values, covered, scale_counts(graph, counted), entry.name, (note,) if note else ())


def reduce_evidence(
    evidence: Iterable[tuple[Any, Any]], n_groups: int, how: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Reduce evidence to (values, covered), both (n_groups,).

    Raises:
        SlimError: It is no pairs of channel groups and as many values.

    >>> reduce_evidence([([0, 1, -1], [3.0, 1.0, 9.0]), ([0, 0], [4.0, 2.0])], 3, "mean")
    (array([3., 1., 0.]), array([ True,  True, False]))
    """
    ids: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    values: list[npt.NDArray[np.float64]] = [np.empty(0, np.float64)]
    if not isinstance(evidence, Iterable):
        raise _bad_evidence(f"{type(evidence).__name__} for them all")
    for pair in evidence:
        groups, numbers = _checked_pair(pair, n_groups)
        ids.append(groups)
        values.append(numbers)
    index, number = np.concatenate(ids), np.concatenate(values)
    index, number = index[index >= 0], number[index >= 0]
    count = np.bincount(index, minlength=n_groups)
    covered = count > 0
    if how == "max":
        result: npt.NDArray[np.float64] = np.full(n_groups, -np.inf)
        np.maximum.at(result, index, number)
        result[~covered] = 0.0
    elif how == "l2":
        result = np.sqrt(np.bincount(index, number * number, minlength=n_groups))
    else:
        result = np.bincount(index, number, minlength=n_groups).astype(np.float64)
        if how == "mean":
            result = result / np.maximum(count, 1)
    return result, covered


def _checked_pair(pair: Any, n_groups: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """A piece of evidence as groups (n,) and values (n,)."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise _bad_evidence(f"{str(pair)[:40]} for a pair")
    try:
        groups, numbers = as_float64(pair[0]).ravel(), as_float64(pair[1]).ravel()
    except (TypeError, ValueError) as error:
        raise _bad_evidence(str(error)[:80]) from None
    if len(groups) != len(numbers):
        raise _bad_evidence(f"{len(groups)} groups with {len(numbers)} values")
    if not ((groups == np.floor(groups)) & (groups < n_groups)).all():
        raise _bad_evidence(f"groups from {groups.min():g} to {groups.max():g} of {n_groups}")
    return groups.astype(np.int64), numbers


def _bad_evidence(what: str) -> SlimError:
    return SlimError(
        f"A criterion must yield pairs of channel groups and as many values. Got {what}. "
        "Yield such as (scale.groups, values)."
    )


def _inherit_scores(graph: ChannelGraph, values: npt.NDArray[np.float64], covered: npt.NDArray[np.bool_]) -> None:
    """A reader of a shared stream without evidence gets the score of the channel it reads."""
    if len(graph.implied):
        stream, reader = graph.implied[:, 0], graph.implied[:, 1]
        inheriting = ~covered[reader] & covered[stream]
        values[reader[inheriting]] = values[stream[inheriting]]
        covered[reader[inheriting]] = True


def as_float64(numbers: Any) -> npt.NDArray[np.float64]:
    """A tensor of any device and precision, or anything array-like, as float64."""
    if hasattr(numbers, "detach"):
        numbers = numbers.detach().cpu().double().numpy()
    return np.asarray(numbers, dtype=np.float64)


def scale_counts(graph: ChannelGraph, covered: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Number of scales of each group, (n_groups,); in a network without scales 1 for a covered group."""
    scales = [s.groups for s in graph.scales if s.weight is not None]
    groups = np.concatenate([np.empty(0, np.int64), *scales])
    counts = np.bincount(groups[groups >= 0], minlength=len(graph)).astype(np.int64)
    if not counts.any():
        return covered.astype(np.int64)
    return np.where(covered, np.maximum(counts, 1), counts)


def _check_options(name: str, rank: Rank, options: dict[str, Any]) -> None:
    """Raise for an option that the criterion does not have, before anything runs."""
    import inspect

    parameters = inspect.signature(rank).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = list(parameters)[1:]
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "It has none."
            raise SlimError(
                f"Criterion {name} has no such option. Got {key}={str(options[key])[:40]!r}. {hint}"
                f" Change criterion.{key}."
            )
    expect_booleans(rank, options, "criterion")


def _check_numbers(
    graph: ChannelGraph, name: str, values: npt.NDArray[np.float64], covered: npt.NDArray[np.bool_]
) -> None:
    bad = np.flatnonzero(covered & ~np.isfinite(values))
    if bad.size:
        where = graph.spaces[int(graph.space_of[bad[0]])].name
        raise SlimError(
            f"Scores must be finite numbers. Got {values[bad[0]]} for {bad.size} channel groups (criterion {name},"
            f" first in {where}). The network or the data hold NaN or infinity; use an earlier checkpoint."
        )
