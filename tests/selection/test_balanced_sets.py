"""Bundles: balanced, in ascending order, and no larger than they must be."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import slim
from slim.criteria import Scores, marginal
from slim.criteria.scores import scale_counts
from slim.selection import select_groups
from slim.selection.balanced_sets import balanced_sets
from tests.selection.networks import INPUTS, network


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
    set_of, _ = balanced_sets(graph, graph.prunable & scores.covered, scores.values)
    found = np.unique(set_of[set_of >= 0])
    assert len(found) > 10
    for b in found:
        graph.plan(set_of == b)  # refuses what is not balanced


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


def test_no_piece_of_a_split_is_emptied():
    """Spaces keep their floors even if everything that one split hands on goes; its readers must not be left empty."""
    _, graph = network("shuffle")
    covered = slim.score(graph, "gamma").covered
    for balance in graph.balance:
        values = np.ones(len(graph))
        values[np.concatenate(balance.blocks)] = 0
        scores = Scores(values, covered, scale_counts(graph, covered), "aimed")
        for ratio in (0.5, 0.8, 0.95):
            plan = graph.plan(select_groups(graph, scores, ratio=ratio).removed)
            assert all(kept > 0 for _, kept in plan.widths.values())


def test_two_partitions_of_the_same_channels_are_met_at_once():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 8, 1, groups=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    graph = slim.trace(model, INPUTS)
    scores = slim.score(graph, "l1")
    between = next(s for s in graph.spaces if s.name == "2").groups
    removed = select_groups(graph, scores, overrides={"2": {"ratio": 0.5}}).removed
    gone = removed[graph.axes[("2.weight", 0)]]
    assert removed[between].sum() == gone.sum() == 6
    assert gone.reshape(3, 4).sum(1).tolist() == [2, 2, 2]
    assert gone.reshape(2, 6).sum(1).tolist() == [3, 3]
    slim.rebuild(model, graph.plan(removed))


class Joined(nn.Module):
    """Two layers that a grouped convolution reads, one in each block: they lose their channels together."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(16)
        self.both, self.head = nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.head(self.both(self.norm(torch.cat([self.a(x), self.b(x)], 1))).relu())


def test_a_ratio_of_its_own_holds_for_every_layer_of_those_that_are_balanced():
    graph = slim.trace(Joined(), torch.zeros(1, 3, 4, 4))
    scores = slim.score(graph, "l1")
    a, b = (next(s.groups for s in graph.spaces if s.name == name) for name in "ab")
    for name in "ab":
        half = select_groups(graph, scores, overrides={name: {"ratio": 0.5}}).removed
        assert half[a].sum() == half[b].sum() == 4 == half.sum() / 2
        none = select_groups(graph, scores, ratio=0.4, overrides={name: {"ratio": 0.0}}).removed
        assert not none[a].any() and not none[b].any() and none.any()
    smaller = select_groups(graph, scores, overrides={"a": {"ratio": 0.5}, "b": {"ratio": 0.25}}).removed
    assert smaller[a].sum() == smaller[b].sum() == 2
