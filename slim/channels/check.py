"""What a removal must satisfy before it becomes a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels.graph import BoolArray, ChannelGraph


def check_removal(graph: ChannelGraph, removed: BoolArray) -> None:
    """Refuse a removal that the structure forbids.

    Raises:
        SlimError: naming the layer and the rule.
    """
    if removed.shape != (graph.count,):
        raise SlimError(f"removed must be one flag per group. Got shape {removed.shape}, groups {graph.count}.")
    stuck = np.flatnonzero(removed & ~graph.prunable & ~graph.inexact)
    if len(stuck):
        space = graph.spaces[graph.space_of[stuck[0]]]
        raise SlimError(
            f"A removed group must be prunable. Got group {stuck[0]} of {space.name}: "
            f"{graph.reasons.get(int(stuck[0]), 'it must stay')}. Leave it out of the plan."
        )
    for (name, dim), groups in graph.axes.items():
        mine = groups[groups >= 0]
        if len(mine) == len(groups) and removed[mine].all():
            raise SlimError(
                f"No layer may become empty. Got {name} (axis {dim}) without channels. Keep one, with min_channels=1."
            )
    for balance in graph.balance:
        counts = [int(removed[block[block >= 0]].sum()) for block in balance.blocks]
        if len(set(counts)) > 1:
            raise SlimError(
                f"Every block must lose equally many channels. Got {counts[:8]} ({balance.where}). "
                "Remove balanced sets, as slim.select does."
            )
