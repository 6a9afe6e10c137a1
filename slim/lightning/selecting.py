"""Which channels a cut would remove: scores and a selection under the budget of the dense network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slim import criteria
from slim.channels import ChannelGraph, plan_of
from slim.criteria import Scores
from slim.lightning.example import eager
from slim.lightning.options import BUDGETS
from slim.lightning.traced import TracedNetwork
from slim.selection import Selection, dense_limits, remaining_budget, select_groups, select_next_cut


def select(
    traced: TracedNetwork, criterion: Any, budget: Mapping[str, Any], limits: Mapping[str, Any], loader: Any = None
) -> Selection:
    """Select the groups that a budget removes by one global ranking; budget, floors and caps are the dense network's.

    Args:
        traced: The network.
        criterion: Name, function, or a dict with ``name`` and options.
        budget: ``{kind: amount}``.
        limits: Of :func:`slim.select`.
        loader: From a number to that many batches, for criteria that look at data.
    """
    graph = traced.graph
    options = {**limits, **budget}
    with eager(traced.network):
        scores = score(graph, criterion, loader)
        if plan_of(traced.network) is None:
            return select_groups(graph, scores, **options)
        return select_next_cut(traced.dense_graph(real="latency" in budget), graph, scores, **options)


def score(graph: ChannelGraph, criterion: Any, loader: Any = None) -> Scores:
    """Rank the channels; ``loader`` as of :func:`select`."""
    options = dict(criterion) if isinstance(criterion, Mapping) else {"name": criterion}
    name = options.pop("name")
    wants_data = "loader" in inspect.signature(criteria.find(name).rank).parameters
    if wants_data and "loader" not in options and loader is not None:
        count = options.get("batches", 8)
        options["loader"] = loader(count if isinstance(count, int) and count > 0 else 1)  # see batches_of
    return criteria.score(graph, name, **options)


def options_on_thin(options: Mapping[str, Any], dense: ChannelGraph, thin: ChannelGraph) -> dict[str, Any]:
    """Options of ``target``, which takes the network it meets for the dense one, for one that is thin already.

    Args:
        options: With budget and ``select`` of the dense network.
        dense: Before any cut.
        thin: The network that the law meets.
    """
    ((kind, amount),) = ((kind, options[kind]) for kind in BUDGETS if options.get(kind) is not None)
    select = dense_limits(dense, thin, options.get("select") or {})
    return {**options, kind: remaining_budget(dense, thin, kind, amount), "select": select}


def none_removed(graph: ChannelGraph) -> npt.NDArray[np.bool_]:
    """An empty selection: False for every group, (groups,)."""
    return np.zeros(len(graph), dtype=bool)
