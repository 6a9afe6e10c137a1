"""Patterns, overrides and every way to ask for something that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

import slim
from slim.criteria import Scores
from slim.errors import SlimError
from slim.selection import select_groups
from tests.selection.networks import network


@pytest.fixture
def case():
    _, graph = network("residual")
    return graph, slim.score(graph, "gamma")


def lost(graph, removed, module):
    space = next(s for s in graph.spaces if module in s.modules)
    return int(removed[space.groups].sum()), len(space.groups)


def test_ignored_layers_stay_and_the_others_pay(case):
    graph, scores = case
    found = select_groups(graph, scores, ratio=0.4, ignore=["a.0.*"])
    assert lost(graph, found.removed, "a.0.0") == (0, 12)
    assert found.achieved["ratio"] == pytest.approx(0.4, abs=0.03)
    both = select_groups(graph, scores, ratio=0.4, ignore=["a.*"])  # the stream that a.1.0 writes stays too
    assert lost(graph, both.removed, "stem.0") == (0, 16)
    assert "Requested ratio=0.4" in both.notes[0]


def test_a_container_stands_for_what_is_inside(case):
    graph, scores = case
    by_name = select_groups(graph, scores, ratio=0.3, ignore="b").removed
    by_pattern = select_groups(graph, scores, ratio=0.3, ignore=["b.*"]).removed
    assert (by_name == by_pattern).all()


def test_overrides_by_pattern(case):
    graph, scores = case
    over = {"a.0.0": {"ratio": 0.25}, "b.0.0": {"max_layer_ratio": 0.5, "round_to": 2}, "stem.0": {"min_channels": 15}}
    removed = select_groups(graph, scores, ratio=0.3, overrides=over).removed
    assert lost(graph, removed, "a.0.0") == (3, 12)
    assert lost(graph, removed, "b.0.0")[0] in (0, 2, 4, 6)
    assert lost(graph, removed, "stem.0")[0] <= 1


def test_a_ratio_of_its_own_needs_no_budget(case):
    graph, scores = case
    removed = select_groups(graph, scores, overrides={"a.0.0": {"ratio": 0.5}}).removed
    assert lost(graph, removed, "a.0.0") == (6, 12)
    assert removed.sum() == 6


def test_the_later_override_wins(case):
    graph, scores = case
    over = {"*": {"ratio": 0.5}, "a.0.0": {"ratio": 0.0}}
    removed = select_groups(graph, scores, overrides=over).removed
    assert lost(graph, removed, "a.0.0")[0] == 0
    assert lost(graph, removed, "b.0.0")[0] == 6


def test_floors_come_before_the_budget_and_the_report_says_so(case):
    graph, scores = case
    found = select_groups(graph, scores, ratio=0.9, max_layer_ratio=0.5)
    assert found.achieved["ratio"] == pytest.approx(0.5, abs=0.01)
    assert "Requested ratio=0.9, achieved 0.5" in found.notes[0]


def test_rounding_that_nothing_meets_is_reported(case):
    graph, scores = case
    with pytest.raises(SlimError, match="3 layers stay whole: no smaller width is a multiple of round_to"):
        select_groups(graph, scores, ratio=0.5, round_to=64)
    found = select_groups(graph, scores, ratio=0.5, overrides={"stem.0": {"round_to": 64}, "a.0": {"round_to": 12}})
    assert any("2 layers stay whole" in n for n in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["a.0"]}, "overrides must be a Mapping"),
        ({"ignore": [5]}, "Got pattern=5"),
        ({"inexact": "x"}, "Got inexact='x'"),
        ({"ratio": 1.0}, r"ratio must be in \[0, 1\). Got ratio=1.0. Set prune.ratio below 1."),
        ({"ratio": -0.1}, "ratio must be in"),
        ({"ratio": True}, "ratio must be in"),
        ({"ratio": "0.5"}, "ratio must be in"),
        ({"ratio": float("nan")}, "ratio must be in"),
        ({"macs": 0}, "fraction kept"),
        ({"macs": -1}, "fraction kept"),
        ({"params": float("inf")}, "fraction kept"),
        ({"macs": 0.5, "ratio": 0.5}, "One target decides. Got ratio=0.5, macs=0.5"),
        ({"macs": 0.001}, "budget must be within reach. Got macs=0.001"),
        ({"params": 2}, "budget must be within reach. Got params=2"),
        ({}, "budget must say how much goes. Got none of ratio, macs, params, memory, latency"),
        ({"overrides": {"a.0.0": {"min_channels": 2}}}, "budget must say how much goes"),
        ({"ratio": 0.5, "min_channels": 0}, "min_channels must be a whole number"),
        ({"ratio": 0.5, "round_to": 1.5}, "round_to must be a whole number"),
        ({"ratio": 0.5, "max_layer_ratio": 1.5}, r"max_layer_ratio must be in \[0, 1\]"),
        ({"ratio": 0.5, "strategy": "glboal"}, "Did you mean global"),
        ({"ratio": 0.5, "ignore": ["a.00"]}, "must match a layer.*Did you mean a.0.0"),
        ({"ratio": 0.5, "overrides": {"nothing": {"ratio": 0.5}}}, "must match a layer.*overrides"),
        ({"ratio": 0.5, "overrides": {"a.0.0": {"ration": 0.5}}}, "Did you mean ratio"),
        ({"ratio": 0.5, "overrides": {"a.0.0": {"ratio": 1.5}}}, "ratio must be in"),
        ({"ratio": 0.5, "overrides": {"a.0.0": {"ignore": "yes"}}}, "true or false"),
        ({"ratio": 0.5, "overrides": {"a.0.0": 0.5}}, "mapping"),
        ({"ratio": 0.5, "ignore": ["*"]}, "Something must be removable"),
    ],
)
def test_bad_requests_are_one_clear_error(case, options, message):
    graph, scores = case
    with pytest.raises(SlimError, match=message) as caught:
        select_groups(graph, scores, **options)
    assert "\n" not in str(caught.value)


def test_scores_of_another_network_are_refused(case):
    graph, scores = case
    _, other = network("plain")
    with pytest.raises(SlimError, match="belong to the graph"):
        select_groups(other, scores, ratio=0.5)
    values = scores.values.copy()
    values[np.flatnonzero(scores.covered)[0]] = np.nan
    with pytest.raises(SlimError, match="finite"):
        select_groups(graph, Scores(values, scores.covered, scores.counts, "broken"), ratio=0.5)


def test_a_stream_that_is_ignored_stays_whole_whoever_reads_it():
    """A stream follows its readers: a channel that none of them keeps would go."""
    _, graph = network("dense-select")
    scores, stream = slim.score(graph), next(space for space in graph.spaces if graph.implied[0, 0] in space.groups)
    free = select_groups(graph, scores, ratio=0.9).removed
    kept = select_groups(graph, scores, ratio=0.9, ignore=[stream.name]).removed
    assert free[stream.groups].any() and not kept[stream.groups].any() and kept.any()


def test_a_stream_that_cannot_be_rounded_is_named():
    _, graph = network("dense-select")
    scores = slim.score(graph)
    assert not select_groups(graph, scores, ratio=0.4).notes
    found = select_groups(graph, scores, ratio=0.4, round_to=4)
    streams = {int(space) for space in graph.space_of[graph.implied[:, 0]]}
    left = [(len(graph.spaces[i].groups), int((~found.removed[graph.spaces[i].groups]).sum())) for i in streams]
    uneven = [kept for wide, kept in left if kept < wide and kept % 4]
    assert uneven and f"{len(uneven)} streams keep what their readers keep" in found.notes[-1]
