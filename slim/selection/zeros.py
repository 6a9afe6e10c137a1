"""What may go because it is exactly zero already."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slim.channels import ChannelGraph


def exact_zeros(graph: ChannelGraph, min_channels: int = 1) -> npt.NDArray[np.bool_]:
    """Groups (groups,) whose every gamma is exactly zero, as far as the structure lets them go.

    Balanced blocks lose equally many and every layer keeps ``min_channels``; which zeros stay is fixed.
    """
    live, scaled = np.zeros(len(graph), dtype=bool), np.zeros(len(graph), dtype=bool)
    for scale in graph.scales:
        if scale.weight is None:
            continue
        inside = scale.groups >= 0
        gamma = graph.model.get_parameter(scale.weight).detach().cpu().numpy()
        scaled[scale.groups[inside]] = True
        live[scale.groups[inside][gamma[inside] != 0]] = True
    removed: npt.NDArray[np.bool_] = scaled & ~live & graph.prunable
    while True:
        before = int(removed.sum())
        for balance in graph.balance:
            count = min(int(removed[block].sum()) for block in balance.blocks)
            for block in balance.blocks:
                removed[block[removed[block]][count:]] = False
        for space in graph.spaces:
            gone = space.groups[removed[space.groups]]
            spare = len(gone) - max(len(space.groups) - min_channels, 0)
            if spare > 0:
                removed[gone[:spare]] = False
        if int(removed.sum()) == before:
            return removed
