"""Why channels must stay, and what a user can do about it: plain data for reports and errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

REASONS = 3
ADVICE = (
    (r"slim\.fold", "Store the weight as a plain one: model = slim.fold(model, inputs)."),
    (r"from more than parameters", "The input makes the weight: nothing to do, or a plain layer in its place."),
    (r"statistics over", "A normalization over channels: use BatchNorm there, or prune.inexact=true and fine-tune."),
    (r"reduces over", "An average over channels: prune.inexact=true and fine-tune, or prune.granularity=layer."),
    (r"over channels", "Every channel sees all others there: whole blocks may go, by prune.granularity=layer."),
    (r"computes with the number", "Scale by a number that the module holds, not by one computed from the width."),
    (r"fixes the width", "Compute the width from the tensor's shape, or keep it in an attribute of the module."),
    (r"attention head|keeps its width", "Write attention with q, k and v layers and widths in attributes."),
    (r"no rule for", "Use an operation that slim knows, or report the one that is named."),
    (r"not the network's own|no layer makes", "Input and tables of positions: nothing to do."),
    (r"model's output", "The network's output: nothing to do."),
    (r"shared stream|stream", "Trace with residual=group."),
    (r"equal blocks|one channel per group|per group", "Trace with grouped=whole, or use fewer groups."),
    (r"by their position|by position", "Take channels as shares of the width (chunk), not by number."),
)


def reasons(graph: ChannelGraph) -> list[dict[str, Any]]:
    """The largest reasons for which channels cannot go, with what a user can do, the largest first.

    Returns:
        Up to three of ``reason``, ``advice``, ``share`` (of all groups) and ``where`` (a layer).
    """
    count: dict[str, int] = {}
    where: dict[str, str] = {}
    for group in np.flatnonzero(~graph.prunable).tolist():
        reason, _, place = graph.reasons.get(group, "must stay").partition(" (")
        count[reason] = count.get(reason, 0) + 1
        where.setdefault(reason, place.rstrip(")") or graph.spaces[graph.space_of[group]].name)
    largest = sorted(count, key=lambda reason: (-count[reason], reason))[:REASONS]
    return [
        {"reason": reason, "advice": _advice(reason), "share": count[reason] / len(graph), "where": where[reason]}
        for reason in largest
    ]


def _advice(reason: str) -> str:
    return next((advice for pattern, advice in ADVICE if re.search(pattern, reason)), "See graph.report().")


def as_lines(stayed: list[dict[str, Any]]) -> list[str]:
    """One line per reason, for people."""
    return [
        f"{entry['share']:.0%} of the channel groups must stay: {entry['reason']} ({entry['where']}). {entry['advice']}"
        for entry in stayed
    ]
