"""The next cut: budget, floors and ratios are those of the dense network, however many cuts came before."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import slim
import slim.models
from slim.channels import count_macs, count_params, plan_of
from slim.criteria import Scores
from slim.selection import select_next_cut
from tests.selection.networks import INPUTS, network

AMOUNTS = {"ratio": (0.2, 0.35, 0.5), "macs": (0.8, 0.6, 0.45), "params": (0.8, 0.6, 0.45)}


def cut_again_and_again(name, amounts, kind, **rules):
    """The dense network, the thin one and the last selection, each cut by scores of its own."""
    dense = slim.trace(network(name)[0], INPUTS)
    thin = dense.model
    for number, amount in enumerate(amounts):
        graph = slim.trace(thin, INPUTS)
        drawn = np.random.default_rng(number).random(len(graph))
        base = slim.score(graph, "gamma" if graph.scales else "l1")
        scores = Scores(np.where(base.covered, drawn, 0.0), base.covered, base.counts, "drawn")
        found = select_next_cut(dense, graph, scores, **{kind: amount}, **rules)
        thin = slim.rebuild(thin, graph.plan(found.removed))
    return dense, thin, found


@pytest.mark.parametrize("kind", AMOUNTS)
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_several_cuts_end_at_the_budget_of_the_dense_network(name, kind):
    amounts = AMOUNTS[kind]
    dense, thin, found = cut_again_and_again(name, amounts, kind)
    assert found.requested == {kind: amounts[-1]}
    if kind == "ratio":
        scales = sum(len(s.groups) for s in dense.scales) or len(dense)
        assert found.achieved["ratio"] == pytest.approx(amounts[-1], abs=4 / scales)
    else:
        count = count_macs if kind == "macs" else count_params
        args = (INPUTS,) if kind == "macs" else ()
        share = count(thin, *args) / count(dense.model, *args)
        assert amounts[-1] - 0.1 < share <= amounts[-1]
        assert found.achieved[kind] == pytest.approx(share)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_floors_are_those_of_the_dense_network(name):
    rules = {"max_layer_ratio": 0.5, "min_channels": 3}
    _, thin, found = cut_again_and_again(name, (0.2, 0.4, 0.6), "ratio", **rules)
    widths = plan_of(thin).widths
    assert any(kept < wide for wide, kept in widths.values())
    assert all(kept >= max(3, wide / 2) for wide, kept in widths.values() if kept < wide)
    assert found.notes


def test_a_layers_own_ratio_is_of_the_dense_layer():
    dense = network("plain")[1]
    layer = next(space for space in dense.spaces if dense.prunable[space.groups].all())
    rules = {"overrides": {layer.name: {"ratio": 0.5}}}
    _, thin, _ = cut_again_and_again("plain", (0.1, 0.2, 0.3), "ratio", **rules)
    wide, kept = plan_of(thin).widths[layer.name]
    assert kept == round(wide / 2)


def test_a_network_below_its_budget_loses_nothing_and_says_so():
    _, _, found = cut_again_and_again("plain", (0.4, 0.3), "ratio")
    assert not found.removed.any()
    assert "Nothing was removed" in found.notes[0] and "ratio=0.3" in found.notes[0]


def test_a_cut_after_one_that_went_to_the_floors_removes_nothing_and_says_so():
    _, _, found = cut_again_and_again("plain", (0.8, 0.9), "ratio", max_layer_ratio=0.25)
    assert not found.removed.any() and "Nothing was removed" in found.notes[0]
    assert 0 < found.achieved["ratio"] <= 0.25


def test_a_ratio_of_branches_is_of_the_dense_networks_branches():
    """Whatever the widths of those that go: here the narrow ones first, then the wide ones."""
    dense = slim.trace(slim.models.resnet(20), INPUTS)
    thin = dense.model
    for ratio, branches in ((0.4, 3), (0.7, 5)):
        graph = slim.trace(thin, INPUTS)
        by_place = Scores(np.arange(len(graph)) * 1.0, graph.prunable, np.ones(len(graph), np.int64), "place")
        found = select_next_cut(dense, graph, by_place, ratio=ratio, granularity="layer")
        thin = slim.rebuild(thin, graph.plan(found.removed))
        assert found.achieved["ratio"] == pytest.approx(branches / len(dense.branches))
        assert len(slim.trace(thin, INPUTS).branches) == len(dense.branches) - branches


def test_channels_without_a_scale_count_in_every_cut_where_they_are_ranked():
    """In a network that has scales, too: the first cut counted them, the later ones did not."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 2, 1)
    )
    dense = graph = slim.trace(net, INPUTS)
    for amount in (0.25, 0.5):
        found = select_next_cut(dense, graph, slim.score(graph, "l1"), ratio=amount)
        assert found.achieved["ratio"] == pytest.approx(amount, abs=1 / 48)
        graph = slim.trace(slim.rebuild(graph.model, graph.plan(found.removed)), INPUTS)
    assert sum(kept for name, (_, kept) in plan_of(graph.model).widths.items() if name in "03") == 24
