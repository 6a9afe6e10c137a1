"""The channel graph as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from slim.channels.graph import ChannelGraph


def describe(graph: ChannelGraph) -> str:
    """One line per layer that makes channels: its width, what it is coupled with, MACs, prunable or why not."""
    macs: dict[str, int] = {}
    for layer, count in zip(graph.layers, graph.layer_macs(), strict=True):
        macs[layer.module] = macs.get(layer.module, 0) + count
    rows = [("layer", "width", "may go", "MACs", "coupled with / why not")]
    for space in graph.spaces:
        free = int(graph.prunable[space.groups].sum())
        others = [m for m in space.modules if m != space.name]
        note = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        if free < len(space.groups):
            stuck = space.groups[~graph.prunable[space.groups]]
            why = graph.reasons.get(int(stuck[0]), "must stay")
            note = f"{why}; with {note}" if note else why
        rows.append((space.name, str(len(space.groups)), str(free), _short(macs.get(space.name, 0)), note))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    lines = [
        "  ".join([r[0].ljust(widths[0]), *(r[i].rjust(widths[i]) for i in (1, 2, 3)), r[4]]).rstrip() for r in rows
    ]
    lines.append("")
    lines.append(
        f"{graph.count} channel groups, {int(graph.prunable.sum())} prunable, {int(np.sum(graph.inexact))} inexact; "
        f"{_short(graph.macs())} MACs ({_short(2 * graph.macs())} FLOPs) on {graph.input_shapes}; "
        f"{_short(graph.params())} parameters"
    )
    lines += [f"operation without a rule: {op} (in {where})" for op, where in graph.unknown.items()]
    if graph.unreached:
        lines.append("parameters the forward never reached: " + ", ".join(graph.unreached[:8]))
    return "\n".join(lines)


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
