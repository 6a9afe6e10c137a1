"""Laws that hold for every criterion, now and in future."""

from __future__ import annotations

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import slim
from slim.criteria import CRITERIA, NORMALIZATIONS, criterion, names
from slim.criteria.normalize import normalize_scores
from slim.errors import SlimError
from tests.criteria.networks import INPUTS, Named, batches, residual, space

ALL = sorted(names())
DATA = [n for n in ALL if n != "combination" and "loader" in inspect.signature(CRITERIA[n].rank).parameters]


def options_of(name, loader):
    found = {"loader": loader} if name in DATA else {}
    return {"parts": {"gamma": 1.0, "l2": 1.0}} if name == "combination" else found


def score(graph, name, **more):
    return slim.score(graph, name, **options_of(name, batches()), **more)


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_untouched_and_the_scores_are_the_same_again(name):
    model, graph = residual()
    model.train()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    first = score(graph, name)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training and model.first_norm.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (score(graph, name).values == first.values).all()
    assert first.values.dtype == np.float64
    assert first.covered[space(graph, "first")].all()


@pytest.mark.parametrize("name", DATA)
def test_a_shuffling_loader_follows_the_seed(name):
    _, graph = residual()
    images = torch.cat([x for x, _ in batches(6)])
    labels = torch.cat([y for _, y in batches(6)])
    loader = DataLoader(list(zip(images, labels, strict=True)), batch_size=8, shuffle=True)
    a = slim.score(graph, name, loader=loader, batches=2, seed=1).values
    torch.manual_seed(99)
    b = slim.score(graph, name, loader=loader, batches=2, seed=1).values
    c = slim.score(graph, name, loader=loader, batches=2, seed=2).values
    assert (a == b).all()
    assert (a != c).any()


class Drawn:
    """Batches that draw from every generator a loader may use."""

    def __iter__(self):
        for x, y in batches(2):
            yield x + torch.randn(1) + float(np.random.rand()) + random.random(), y


@pytest.mark.parametrize("name", DATA)
def test_every_generator_that_a_loader_draws_from_follows_the_seed_and_is_put_back(name):
    _, graph = residual()
    torch.rand(3), np.random.rand(3), random.random()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = slim.score(graph, name, loader=Drawn()).values
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and random.getstate() == states[2]
    torch.rand(3), np.random.rand(3), random.random()
    assert (slim.score(graph, name, loader=Drawn()).values == first).all()


class Stacked(nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(torch.stack(images))


@pytest.mark.parametrize("name", DATA)
def test_a_list_of_images_counts_as_a_batch_of_them(name):
    model, graph = residual()
    stacked = slim.trace(Stacked(model), [torch.zeros(3, 8, 8)])
    want = slim.score(graph, name, loader=batches()).values
    got = slim.score(stacked, name, loader=[(list(x), y) for x, y in batches()]).values
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", DATA)
def test_without_data_there_is_one_clear_error(name):
    model, graph = residual()
    model.train()
    with pytest.raises(SlimError, match="needs data"):
        slim.score(graph, name)
    with pytest.raises(SlimError, match="empty loader"):
        slim.score(graph, name, loader=[])
    with pytest.raises(SlimError, match="batches must be"):
        slim.score(graph, name, loader=batches(), batches=0)
    with pytest.raises(SlimError, match=r"must run on the loader's batches.*\(2, 5, 8, 8\)"):
        slim.score(graph, name, loader=[(torch.zeros(2, 5, 8, 8), torch.zeros(2, dtype=torch.int64))])
    assert model.training, "modes come back even when the forward fails"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("random", "uniform", "apoz")])
def test_numbers_that_are_none_are_refused(name):
    model, graph = residual()
    for p in [*model.parameters(), *model.buffers()]:
        if p.is_floating_point():
            p.data.fill_(float("nan"))
    with pytest.raises(SlimError, match="must be finite"):
        score(graph, name)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_scores_below_zero_are_divided_by_a_size_not_turned_around(how):
    _, graph = residual(width=12, inner=7)
    values = -1.0 - np.random.default_rng(0).random(len(graph))
    made = normalize_scores(graph, values, graph.prunable, how)
    for module in ("stem", "first"):
        mine = values[space(graph, module)]
        size = np.abs(mine).max() if how == "max" else abs(mine.mean())
        assert made[space(graph, module)] == pytest.approx(mine / size)


def test_every_group_that_is_ranked_counts():
    """Also one that no normalization scales, in a network that has some: a ratio could remove it for nothing."""
    bare = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    scores = slim.score(slim.trace(bare, torch.zeros(1, 3, 8, 8)), "l1")
    assert scores.covered.any() and (scores.counts[scores.covered] == 1).all()


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_normalizations(how):
    _, graph = residual(width=12, inner=7)
    raw, made = slim.score(graph, "l2"), slim.score(graph, "l2", normalize=how)
    for module in ("stem", "first"):
        groups = space(graph, module)
        values = raw.values[groups]
        expected = {
            "none": values,
            "max": values / values.max(),
            "mean": values / values.mean(),
            "standard": (values - values.mean()) / values.std(),
        }.get(how)
        if expected is not None:
            assert made.values[groups] == pytest.approx(expected)
        assert (np.argsort(made.values[groups]) == np.argsort(values)).all(), "the order within a layer stays"
    if how == "per_mac":
        alone = np.zeros(len(graph), dtype=bool)
        ratios = []
        for module in ("stem", "first"):
            group = space(graph, module)[0]
            alone[:] = False
            alone[group] = True
            saved = graph.macs() - graph.macs(alone)
            ratios.append(made.values[group] * saved / raw.values[group])
        assert ratios[0] == pytest.approx(ratios[1])


def test_unknown_names_come_with_the_nearest():
    _, graph = residual()
    with pytest.raises(SlimError, match="Did you mean gamma"):
        slim.score(graph, "gama")
    with pytest.raises(SlimError, match="Did you mean mean"):
        slim.score(graph, "gamma", reduce="men")
    with pytest.raises(SlimError, match="normalize must be one of"):
        slim.score(graph, "gamma", normalize="softmax")
    with pytest.raises(SlimError, match=r"no such option.*Did you mean seed"):
        slim.score(graph, "random", sede=1)
    with pytest.raises(SlimError, match="must be importable"):
        slim.score(graph, "no.such.thing")


def test_a_criterion_of_ones_own():
    _, graph = residual()

    @criterion("test_square")
    def square(graph):
        for scale in graph.scales:
            yield scale.groups, graph.model.get_parameter(scale.weight) ** 2

    try:
        by_name = slim.score(graph, "test_square")
    finally:
        del CRITERIA["test_square"]
    by_function = slim.score(graph, square)
    by_path = slim.score(graph, "slim.criteria.gamma.gamma")
    assert (by_name.values == by_function.values).all()
    assert by_name.criterion == "test_square"
    assert (by_path.values == slim.score(graph, "gamma").values).all()


def test_a_criterion_that_says_nothing_is_refused():
    _, graph = residual()
    with pytest.raises(SlimError, match="no channel to rank"):
        slim.score(graph, lambda graph: iter(()))


@pytest.mark.parametrize("name", DATA)
def test_layers_may_be_called_by_keyword(name):
    model, graph = residual()
    named = Named()
    named.load_state_dict(model.state_dict())
    assert (score(slim.trace(named, INPUTS), name).values == score(graph, name).values).all()
