"""What a network lost against what was asked, and why the rest stayed: plain data for reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slim.selection.reasons import reasons

if TYPE_CHECKING:
    from slim.channels import ChannelGraph
    from slim.selection.selection import Selection


def losses(graph: ChannelGraph, selection: Selection) -> dict[str, Any]:
    """What went, and the largest reasons for what stayed.

    Returns:
        ``requested``, ``achieved``, ``channels`` (share of all groups that went), ``params`` and ``macs`` (shares
        that went), ``depth`` (before, after) and ``stayed``: up to three of ``reason``, ``advice``, ``share``
        (of all groups) and ``where`` (a layer), the largest first.
    """
    removed = selection.removed
    return {
        "requested": dict(selection.requested),
        "achieved": dict(selection.achieved),
        "channels": float(removed.mean()) if len(removed) else 0.0,
        "params": 1 - graph.params(removed) / max(1, graph.params()),
        "macs": 1 - graph.macs(removed) / max(1, graph.macs()),
        "depth": [graph.depth(), graph.depth(removed)],
        "stayed": reasons(graph),
    }
