"""Bundles: balanced, in ascending order, and no larger than they must be."""

from __future__ import annotations

import numpy as np

import slim
from slim.criteria import marginal
from slim.selection import select_groups
from slim.selection.bundles import bundles
from tests.selection.networks import network


def test_a_grouped_convolution_loses_the_lowest_of_every_block():
    model, graph = network("grouped")
    scores = slim.score(graph, "gamma")
    removed = select_groups(graph, scores, overrides={"body.1.0": {"ratio": 1 / 3}}).removed
    space = next(s for s in graph.spaces if "body.1.0" in s.modules)
    gamma = model.body[1][1].weight.detach().abs().view(4, 6)
    gone = removed[graph.axes[("body.1.0.weight", 0)]].reshape(4, 6)
    assert len(space.groups) == 24
    for block, values in zip(gone, gamma, strict=True):
        assert np.flatnonzero(block).tolist() == sorted(values.argsort()[:2].tolist()), "each block its own best"


def test_every_bundle_of_a_shuffled_network_is_balanced_by_itself():
    _, graph = network("shuffle")
    scores = slim.score(graph, "gamma")
    bundle_of, _ = bundles(graph, graph.prunable & scores.covered, scores.values)
    found = np.unique(bundle_of[bundle_of >= 0])
    assert len(found) > 10
    for b in found:
        graph.plan(bundle_of == b)  # refuses what is not balanced


def test_half_of_a_shuffled_network_can_go():
    _, graph = network("shuffle")
    found = select_groups(graph, slim.score(graph, "gamma"), ratio=0.5)
    assert abs(found.achieved["ratio"] - 0.5) < 0.1


def test_marginal_costs_are_what_removing_alone_saves():
    for name in ("residual", "dense", "plain", "dense-select"):
        _, graph = network(name)
        for cost in ("macs", "params"):
            saved = marginal(graph, cost)
            for g in range(0, len(graph), 7):
                alone = np.zeros(len(graph), dtype=bool)
                alone[g] = True
                assert saved[g] == getattr(graph, cost)() - getattr(graph, cost)(alone)


def test_marginal_selection_keeps_more_score_at_equal_macs():
    _, graph = network("residual")
    scores = slim.score(graph, "gamma")
    kept = {}
    for strategy in ("global", "marginal"):
        removed = select_groups(graph, scores, macs=0.5, strategy=strategy).removed
        kept[strategy] = scores.values[~removed].sum()
    assert kept["marginal"] > kept["global"]
