"""Latency tables: structure and arithmetic; times themselves are nobody's law."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.errors import SlimError
from slim.selection import latency, select_groups
from slim.selection.latency import Grid, LatencyTable, forward_times, measure
from tests.selection.networks import INPUTS, network


def test_times_between_measured_widths_are_interpolated():
    grid = Grid(np.array([2, 4]), np.array([1, 3]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert grid.at(2, 1) == 1
    assert grid.at(4, 3) == 4
    assert grid.at(3, 2) == 2.5
    assert grid.at(1, 1) == 1, "below the table the smallest width answers"


@pytest.mark.parametrize("name", ["residual", "grouped", "shuffle", "dense-select"])
def test_the_table_explains_the_dense_network_and_falls_as_channels_go(name):
    model, graph = network(name)
    table = measure(graph, INPUTS)
    nothing = np.zeros(len(graph), dtype=bool)
    assert table.cost(nothing) >= table.dense - 1e-9
    assert len(table.layers) == len(graph.layers)
    scores = slim.score(graph, "gamma")
    costs = [table.cost(select_groups(graph, scores, ratio=r).removed) for r in (0, 0.2, 0.4, 0.6)]
    assert costs == sorted(costs, reverse=True)
    assert table.check(select_groups(graph, scores, ratio=0.5).removed) > 0
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_timing_leaves_the_network_alone():
    """In training mode, too: a forward there would move the statistics of BatchNorm."""
    model, graph = network("residual")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    select_groups(graph, slim.score(graph, "gamma"), latency=0.99)
    forward_times([graph, graph])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())


class Honest(LatencyTable):
    """Rebuilt networks keep a part of what the table promises."""

    kept = 1.0

    def check(self, removed):
        return self.dense - self.kept * (self.dense - self.cost(removed))


def made_up(graph) -> Honest:
    """A table in which a layer takes as long as it has outputs."""
    widths = np.array([1, 1000])
    grid = Grid(widths, widths, np.array([[1.0, 1000.0], [1.0, 1000.0]]))
    layers = [(grid, 1, s.groups) for s in graph.spaces if graph.prunable[s.groups].any()]
    dense = float(sum(len(groups) for _, _, groups in layers))
    return Honest(graph, layers, dense, INPUTS)


def test_a_latency_budget_is_met_and_checked_on_the_rebuilt_network():
    _, graph = network("residual")
    table = made_up(graph)
    found = select_groups(graph, slim.score(graph, "gamma"), latency=0.5, table=table)
    assert table.cost(found.removed) <= 0.5 * table.dense
    assert table.cost(found.removed) > 0.5 * table.dense - 1.5, "one channel takes one millisecond here"
    assert found.achieved["latency"] <= 0.5
    assert "measured on the rebuilt network" in found.notes[0]


def test_what_the_table_promises_too_much_is_found_by_measuring(monkeypatch):
    _, graph = network("residual")
    table = made_up(graph)
    monkeypatch.setattr(Honest, "kept", 0.6)
    found = select_groups(graph, slim.score(graph, "gamma"), latency=0.7, table=table)
    assert 0.7 * 1.02 - 1.5 / table.dense < found.achieved["latency"] <= 0.7 * 1.02
    assert found.achieved["latency"] == pytest.approx(table.check(found.removed) / table.dense)
    monkeypatch.setattr(Honest, "kept", 0.1)
    with pytest.raises(SlimError, match=r"within reach\. Got latency=0\.7"):
        select_groups(graph, slim.score(graph, "gamma"), latency=0.7, table=table)


def test_without_a_table_one_is_measured(monkeypatch):
    monkeypatch.setattr(latency, "side_by_side", partial(latency.side_by_side, seconds=0.05))
    torch.manual_seed(0)
    parts = [[nn.Conv2d(cin, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()] for cin in (3, 64, 64)]
    model = nn.Sequential(*(m for part in parts for m in part), nn.Conv2d(64, 2, 1))
    graph = slim.trace(model, torch.zeros(1, 3, 32, 32))
    found = select_groups(graph, slim.score(graph, "uniform"), latency=0.9)
    assert found.removed.any()
