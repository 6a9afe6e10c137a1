"""Laws of selection over random scores, budgets and constraints, on every structure."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import slim
from slim.channels import count_macs, count_params
from slim.criteria import Scores
from slim.criteria.scores import scale_counts
from slim.errors import SlimError
from slim.selection import NothingRemovable, select_groups
from tests.selection.networks import INPUTS, NETWORKS, Residual, network

names = st.sampled_from(sorted(NETWORKS))
seeds = st.integers(0, 10_000)
constraints = st.fixed_dictionaries(
    {
        "min_channels": st.integers(1, 4),
        "max_layer_ratio": st.sampled_from([1.0, 0.9, 0.6, 0.3]),
        "round_to": st.sampled_from([1, 1, 2, 4]),
        "strategy": st.sampled_from(["global", "marginal", "layer"]),
    }
)


def random_scores(graph, seed, ties=False):
    generator = np.random.default_rng(seed)
    covered = np.zeros(len(graph), dtype=bool)
    scaled = [s.groups for s in graph.scales]
    if scaled:
        groups = np.concatenate(scaled)
        covered[groups[groups >= 0]] = True
    else:
        covered[:] = True
    values = generator.integers(0, 3, len(graph)).astype(float) if ties else generator.random(len(graph))
    return Scores(np.where(covered, values, 0.0), covered, scale_counts(graph, covered), "drawn")


def widths_kept(graph, removed):
    return [(len(s.groups), int((~removed[s.groups]).sum())) for s in graph.spaces]


def candidates_of(graph, scores):
    found = graph.prunable & scores.covered
    if len(graph.implied):
        found[graph.implied[:, 0]] = False
    return found


@given(name=names, seed=seeds, ratio=st.floats(0, 0.99), ties=st.booleans(), limits=constraints)
def test_floors_rounding_and_balance_hold(name, seed, ratio, ties, limits):
    _, graph = network(name)
    scores = random_scores(graph, seed, ties)
    try:
        removed = select_groups(graph, scores, ratio=ratio, **limits).removed
    except SlimError as error:  # caps and rounding together may leave nothing that can go
        assert "Something must be removable" in str(error)
        return
    graph.plan(removed)  # refuses unbalanced removals, emptied layers and groups that must stay
    streams = set(graph.space_of[graph.implied[:, 0]].tolist()) if len(graph.implied) else set()
    for s, (dense, kept) in enumerate(widths_kept(graph, removed)):
        assert kept >= min(dense, limits["min_channels"])
        if s not in streams and kept < dense:
            assert kept >= dense * (1 - limits["max_layer_ratio"]) - 1e-6
            assert kept % limits["round_to"] == 0
    assert not (removed & ~graph.prunable).any()


def test_ties_go_by_the_layers_name_not_by_their_place():
    """So that a plan does not depend on the order in which a forward happens to call its layers."""
    layers = {"b": nn.Conv2d(3, 6, 1), "a": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 2, 1)}
    graph = slim.trace(nn.Sequential(OrderedDict(layers)), torch.zeros(1, 3, 4, 4))
    equal = Scores(graph.prunable * 1.0, graph.prunable, graph.prunable.astype(np.int64), "equal")
    plan = slim.select(graph, equal, ratio=0.25)
    assert plan.widths["a"] == (6, 3) and plan.widths["b"] == (6, 6)
    assert plan.axes["a.weight", 0].kept.tolist() == [3, 4, 5]


@pytest.mark.parametrize("strategy", ["global", "marginal"])
@pytest.mark.parametrize("value", [0.1, 0.2, 0.7, 1 / 3])
def test_equal_scores_whose_means_differ_in_the_last_bit_are_rounded(value, strategy):
    graph = slim.trace(nn.Sequential(nn.Conv2d(3, 59, 1), nn.ReLU(), nn.Conv2d(59, 2, 1)), torch.zeros(1, 3, 4, 4))
    equal = Scores(np.full(len(graph), value), graph.prunable, graph.prunable.astype(np.int64), "equal")
    for round_to in (3, 7, 8):
        for ratio in (0.2, 0.5, 0.7):
            found = select_groups(graph, equal, ratio=ratio, round_to=round_to, strategy=strategy)
            assert (59 - found.removed.sum()) % round_to == 0


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_scores_below_zero_are_counted_from_the_lowest(name):
    """Per MAC saved, a negative score would make what saves little go first."""
    _, graph = network(name)
    drawn = random_scores(graph, 3)
    inside = drawn.covered & graph.prunable
    values = np.where(inside, drawn.values - drawn.values[inside].min(), 0.0)
    low = Scores(np.where(inside, values - 0.75, 0.0), inside, drawn.counts, "drawn")
    for amount in (0.8, 0.6):
        found = select_groups(graph, Scores(values, inside, drawn.counts, "drawn"), macs=amount, strategy="marginal")
        again = select_groups(graph, low, macs=amount, strategy="marginal")
        assert np.array_equal(found.removed, again.removed)


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_asking_for_what_was_reached_reaches_the_same(name, kind):
    """A fraction of a whole number is rounded; that must not cost one more channel."""
    _, graph = network(name)
    scores = random_scores(graph, 0)
    for amount in np.linspace(0.5, 1.0, 26):
        found = select_groups(graph, scores, **{kind: float(amount)})
        again = select_groups(graph, scores, **{kind: found.achieved[kind]})
        assert np.array_equal(found.removed, again.removed), amount


@given(
    name=names,
    seed=seeds,
    share=st.floats(0.05, 1),
    kind=st.sampled_from(["macs", "params", "memory"]),
    limits=constraints,
)
def test_costs_are_never_exceeded(name, seed, share, kind, limits):
    _, graph = network(name)
    scores = random_scores(graph, seed)
    measure = {"macs": graph.macs, "params": graph.params, "memory": graph.peak_activation}[kind]
    dense = measure(np.zeros(len(graph), dtype=bool))
    try:
        found = select_groups(graph, scores, **{kind: share}, **limits)
    except SlimError as error:
        if "Something must be removable" in str(error):
            with pytest.raises(NothingRemovable):
                select_groups(graph, scores, ratio=0.5, **limits)
            return
        assert "within reach" in str(error)
        # What the message calls the least is in reach.
        least = float(str(error).split("may go, ")[1].split(" remain")[0])
        if least > 1:
            assert measure(select_groups(graph, scores, **{kind: least * 1.001}, **limits).removed) <= least * 1.001
        return
    assert measure(found.removed) <= share * dense * (1 + 1e-9)
    absolute = select_groups(graph, scores, **{kind: max(share * dense, 1.5)}, **limits)
    assert (absolute.removed == found.removed).all()
    # One unit less would not do: the plan is the smallest prefix.
    if found.removed.any() and limits["round_to"] == 1 and name in ("residual", "plain"):
        key = np.where(found.removed, scores.values, -1)
        if limits["strategy"] == "global":
            last = found.removed.copy()
            last[key.argmax()] = False
            assert measure(last) > share * dense


@given(
    name=names,
    seed=seeds,
    ties=st.booleans(),
    limits=constraints,
    pair=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_a_smaller_budget_keeps_a_subset(name, seed, ties, limits, pair):
    _, graph = network(name)
    scores = random_scores(graph, seed, ties)
    try:
        small, large = (select_groups(graph, scores, ratio=r, **limits).removed for r in sorted(pair))
    except SlimError as error:  # caps and rounding together may leave nothing that can go: refused, not ignored
        assert "Something must be removable" in str(error)
        return
    assert not (small & ~large).any()


@given(name=names, seed=seeds, ratio=st.floats(0, 0.8))
def test_the_ratio_is_the_nearest_count(name, seed, ratio):
    _, graph = network(name)
    scores = random_scores(graph, seed)
    found = select_groups(graph, scores, ratio=ratio)
    if not found.notes:
        counts = scores.counts
        total = counts[graph.prunable & scores.covered].sum()
        largest = {"grouped": 4, "shuffle": 12}.get(name, counts.max())
        assert abs(counts[found.removed].sum() - ratio * total) <= largest / 2 + 1e-9
        assert found.achieved["ratio"] == pytest.approx(counts[found.removed].sum() / total)


def test_nothing_that_lives_goes_for_the_rest_of_a_step():
    """A law has brought as much to zero as the groups of a stream, of three scales, allow: one less than asked for."""
    net = Residual()
    with torch.no_grad():
        for norm in (net.stem[1], net.a[1][1], net.b[1][1]):
            norm.weight[:5] = 0
    graph = slim.trace(net, torch.zeros(1, 3, 8, 8))
    scores = slim.score(graph, "gamma")
    total = scores.counts.sum()
    found = select_groups(graph, scores, ratio=16 / total)
    assert scores.counts[found.removed].sum() == 15 and not scores.values[found.removed].any() and not found.notes
    assert scores.counts[select_groups(graph, scores, ratio=17 / total).removed].sum() == 17


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_nothing_asked_nothing_removed(name):
    _, graph = network(name)
    scores = random_scores(graph, 0)
    for target in ({"ratio": 0}, {"ratio": 0.0}, {"macs": 1.0}, {"params": 1}, {"memory": 1.0}):
        assert slim.select(graph, scores, **target).is_identity


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_what_was_promised_is_what_the_rebuilt_network_costs(name):
    model, graph = network(name)
    found = select_groups(graph, random_scores(graph, 1), ratio=0.5)
    thin = slim.rebuild(model, graph.plan(found.removed))
    assert count_macs(thin, INPUTS) == graph.macs(found.removed)
    assert count_params(thin) == graph.params(found.removed)
    assert found.achieved["macs"] == count_macs(thin, INPUTS) / count_macs(model, INPUTS)
    assert torch.isfinite(thin.eval()(torch.randn(2, 3, 8, 8))).all()


@settings(max_examples=20)
@given(name=names, seed=seeds)
def test_equal_scores_go_by_name_and_index(name, seed):
    """Everything ties: the plan is a function of names alone, whatever the order in which spaces are listed."""
    _, graph = network(name)
    scores = random_scores(graph, seed)
    flat = Scores(np.zeros(len(graph)), scores.covered, scores.counts, "flat")
    removed = select_groups(graph, flat, ratio=0.4).removed
    assert (removed == select_groups(graph, flat, ratio=0.4).removed).all()
    if name in ("residual", "plain"):
        order = sorted(
            np.flatnonzero(candidates_of(graph, flat)), key=lambda g: (graph.spaces[graph.space_of[g]].name, g)
        )
        gone = np.flatnonzero(removed)
        spaces = [graph.spaces[graph.space_of[g]].name for g in order if g in set(gone)]
        assert spaces == sorted(spaces)
        for s in graph.spaces:
            inside = [g for g in s.groups if removed[g]]
            assert inside == list(s.groups[: len(inside)]), "low indices go first"
