"""The brute force that every criterion approximates: leave one channel group out, and measure the loss."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from experiments.criteria.images import Images
from slim.channels import ChannelGraph
from slim.criteria import Scores
from slim.sensitivity.forward_cache import ForwardCache, zeroed_inputs


def correlations(graph: ChannelGraph, ranked: dict[str, Scores], images: Images) -> dict[str, float]:
    """Spearman's rank correlation of each criterion's scores with the loss increase, over all prunable groups."""
    groups = np.flatnonzero(graph.prunable & ranked["gamma"].covered)
    increase = leave_one_out(graph, groups, images)
    found = {name: float(spearmanr(scores.values[groups], increase).statistic) for name, scores in ranked.items()}
    return {name: round(value, 4) for name, value in found.items()}


def leave_one_out(graph: ChannelGraph, groups: np.ndarray, images: Images) -> np.ndarray:
    """Cross entropy of the network without each of ``groups``, less that of the whole one, (len(groups),)."""
    (x, y), *_ = images.batches(len(images))
    graph.model.eval()
    increase = np.zeros(len(groups))
    with ForwardCache(graph.model) as cache, torch.no_grad():
        whole = float(F.cross_entropy(cache.record(x), y))
        for i, group in enumerate(groups):
            alone = np.zeros(len(graph), dtype=bool)
            alone[group] = True
            with zeroed_inputs(graph, alone) as readers:
                first = min(cache.first[r] for r in readers)
                increase[i] = float(F.cross_entropy(cache.run_from(first, x), y)) - whole
    return increase
