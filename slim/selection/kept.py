"""Why the channels that a cut left in each layer are there: plain data for reports."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slim.channels import ChannelGraph
    from slim.selection.selection import Selection


def why_kept(graph: ChannelGraph, selection: Selection) -> dict[str, str]:
    """One phrase per module with channels: what must stay and why, else that the rest ranked above the cut.

    Args:
        graph: Of the network before the cut.
        selection: What goes.
    """
    found: dict[str, str] = {}
    for space in graph.spaces:
        kept = ~selection.removed[space.groups]
        stuck = space.groups[kept & ~graph.prunable[space.groups]]
        phrases = []
        if len(stuck):
            reason, count = Counter(_short(graph.reasons.get(int(group), "must stay")) for group in stuck).most_common(
                1
            )[0]
            phrases.append(reason if count == len(kept) else f"{count} of {len(kept)}: {reason}")
        free = int(kept.sum()) - len(stuck)
        if free:
            whole = free == len(kept)
            phrases.append("all rank above the cut" if whole else "the best one" if free == 1 else "rank above the cut")
        if not kept.any():
            phrases.append("nothing stays")
        others = len(space.modules) - 1
        tied = f"; tied to {others} other{'s' if others > 1 else ''}" if others > 0 and kept.any() else ""
        for module in space.modules:
            found[module] = "; ".join(filter(None, (found.get(module), "; ".join(phrases) + tied)))
    return found


def _short(reason: str) -> str:
    """Without the place in brackets: the table's row is the place."""
    return reason.partition(" (")[0]
