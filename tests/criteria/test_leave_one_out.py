"""Criteria against brute force: leave one channel group out of a trained network, and measure the loss."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

import slim
from tests.criteria.networks import INPUTS, Residual, batches


@functools.cache
def trained():
    """A small network that has learned its task, its graph, and the loss increase of every prunable group."""
    torch.manual_seed(0)
    model = Residual(width=12, inner=10)
    data = batches(12, size=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    model.zero_grad()
    graph = slim.trace(model, INPUTS)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    groups = np.flatnonzero(graph.prunable)
    with torch.no_grad():
        whole = F.cross_entropy(model(x), y)
        assert whole < 0.3, "the task is learned"
        increase = []
        for group in groups:
            alone = np.zeros(len(graph), dtype=bool)
            alone[group] = True
            increase.append(float(F.cross_entropy(slim.mask(model, graph.plan(alone))(x), y) - whole))
    return graph, data, groups, np.array(increase)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("gamma", {}, 0.2),
        ("activation", {}, 0.2),
        ("bn_variance", {"rectified": True}, 0.2),
        # 0.55 to 0.6 with the oldest torch, whose training takes another course; 0.85 with torch 2.14.
        ("taylor", {"beta": True}, 0.55 if torch.__version__.startswith("2.6.") else 0.6),
        ("fisher", {"beta": True}, 0.6),
        ("combination", {"parts": {"taylor": {"weight": 1.0, "beta": True}, "fisher": 1.0}}, 0.6),
    ],
)
def test_the_order_agrees_with_brute_force(name, options, least):
    graph, data, groups, increase = trained()
    if name in ("activation", "taylor", "fisher", "combination"):
        options = {**options, "loader": data, "batches": 12}
    scores = slim.score(graph, name, **options)
    assert spearmanr(scores.values[groups], increase).statistic > least


def test_chance_agrees_with_nothing():
    graph, _, groups, increase = trained()
    found = [spearmanr(slim.score(graph, "random", seed=s).values[groups], increase).statistic for s in range(20)]
    assert abs(np.mean(found)) < 0.2
