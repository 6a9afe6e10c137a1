"""Schedules: where they begin, how they grow, that they end at the budget."""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import slim
from slim.errors import SlimError
from slim.selection.schedules import SCHEDULES, passes, relative
from slim.selection.soft import soften
from tests.selection.networks import Plain, Residual

kinds = st.sampled_from(["ratio", "macs", "params"])


@given(
    name=st.sampled_from(["iterative", "rewind", "scratch"]),
    kind=kinds,
    amount=st.floats(0.05, 0.95),
    count=st.integers(1, 12),
    growth=st.sampled_from(["linear", "cubic"]),
    start=st.none() | st.floats(0.01, 1),
)
def test_amounts_grow_to_the_budget_and_relative_budgets_compose(name, kind, amount, count, growth, start):
    gone = amount if kind == "ratio" else 1 - amount
    begin = None if start is None else start * gone
    found = passes(name, kind=kind, amount=amount, count=count, growth=growth, start=begin)
    assert len(found) == count
    assert found[-1].amount == pytest.approx(amount)
    shares = [p.amount if kind == "ratio" else 1 - p.amount for p in found]
    assert all(a <= b + 1e-12 for a, b in pairwise(shares))
    assert shares[0] > 0
    if begin is not None and count > 1:
        assert shares[0] == pytest.approx(begin)
    if growth == "cubic" and count > 2:
        steps = np.diff(shares)
        assert (np.diff(steps) <= 1e-9).all(), "ever more gently"
    # Cutting each network by its relative budget ends where the dense network was to end.
    kept, before = 1.0, None
    for p in found:
        r = relative(kind, p.amount, before)
        kept *= 1 - r if kind == "ratio" else r
        before = p.amount
    assert kept == pytest.approx(1 - gone)


def test_what_each_schedule_goes_on_from():
    assert {p.weights for p in passes("iterative", kind="ratio", amount=0.5, count=3)} == {"trained"}
    (rewound,) = passes("rewind", kind="macs", amount=0.5, rewind_epoch=2)
    assert (rewound.weights, rewound.rewind_epoch) == ("rewound", 2)
    (fresh,) = passes("scratch", kind="macs", amount=0.5)
    assert fresh.weights == "fresh"
    (soft,) = passes("soft", kind="macs", amount=0.5, every=2)
    assert (soft.soft_every, soft.weights) == (2, "trained")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "iterativ"}, "Did you mean iterative"),
        ({"name": "iterative", "growth": "square"}, "growth must be"),
        ({"name": "iterative", "count": 0}, "count must be"),
        ({"name": "one_shot", "count": 2}, "cuts once"),
        ({"name": "iterative", "count": 2, "start": 0.7}, "start must be"),
        ({"name": "soft", "every": 0}, "every must be"),
        ({"name": "iterative", "count": 2, "kind": "macs", "amount": 1e6}, "fraction kept"),
        ({"kind": "ratio", "amount": 1.0}, "ratio must be"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(SlimError, match=message):
        passes(**{"name": "one_shot", "kind": "ratio", "amount": 0.5, **options})


def test_every_config_is_a_schedule():
    files = sorted((Path(__file__).parents[2] / "conf" / "schedule").glob("*.yaml"))
    assert {f.stem for f in files} == set(SCHEDULES)
    for file in files:
        options = yaml.safe_load(file.read_text())
        assert options["name"] == file.stem
        assert set(options) <= set(inspect.signature(passes).parameters)
        assert passes(**options, kind="ratio", amount=0.5)


def test_soft_cuts_silence_channels_that_a_gradient_brings_back():
    torch.manual_seed(0)
    model = Residual()
    graph = slim.trace(model, torch.zeros(1, 3, 8, 8))
    for scale in graph.scales:
        torch.nn.init.uniform_(model.get_parameter(scale.bias), 0.0, 0.5)
    removed = slim.select_groups(graph, slim.score(graph, "random"), ratio=0.5).removed
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    count = soften(graph, removed, leak=1e-3)
    assert count == sum(int(removed[s.groups].sum()) for s in graph.scales)
    x = torch.randn(8, 3, 8, 8)
    model(x).square().sum().backward()
    for scale in graph.scales:
        gone = torch.from_numpy(removed[scale.groups])
        now = model.get_parameter(scale.weight)
        assert torch.equal(now[~gone], before[scale.weight][~gone])
        assert torch.allclose(now[gone], 1e-3 * before[scale.weight][gone])
        assert torch.allclose(model.get_parameter(scale.bias)[gone], 1e-3 * before[scale.bias][gone])
        assert (now.grad[gone] != 0).float().mean() > 0.9
    quiet = slim.mask(model, graph.plan(removed)).eval()
    assert torch.allclose(model.eval()(x), quiet(x), atol=0.01), "as good as gone"


def test_soft_cuts_silence_filters_without_scales():
    torch.manual_seed(0)
    model = Plain()
    graph = slim.trace(model, torch.zeros(1, 3, 8, 8))
    removed = slim.select_groups(graph, slim.score(graph, "l1"), ratio=0.5).removed
    soften(graph, removed)
    gone = torch.from_numpy(removed[graph.axes[("body.0.weight", 0)]])
    assert model.body[0].weight[gone].abs().max() < 1e-3 < model.body[0].weight[~gone].abs().max()
    assert model.body[0].bias[gone].abs().max() < 1e-3
