"""activation and apoz: what the next layer receives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import slim
from tests.criteria.networks import INPUTS, batches, residual, space


def activations(model, x):
    """(input of first, input of second, input of head), computed by hand."""
    a = F.relu(model.stem_norm(model.stem(x)))
    b = F.relu(model.first_norm(model.first(a)))
    c = F.relu(a + model.second_norm(model.second(b)))
    return a, b, c.mean((2, 3))


@pytest.mark.parametrize(("name", "measure"), [("activation", torch.abs), ("apoz", lambda t: (t != 0).double())])
def test_they_are_means_over_samples_and_positions(name, measure):
    model, graph = residual()
    data = batches(4)
    values = slim.score(graph, name, loader=data, batches=3).values
    with torch.no_grad():
        a, b, c = activations(model.eval(), torch.cat([x for x, _ in data[:3]]))
    assert values[space(graph, "first")] == pytest.approx(measure(b).mean((0, 2, 3)).tolist(), rel=1e-4)
    stream = (measure(a).mean((0, 2, 3)) + measure(c).mean(0)) / 2
    assert values[space(graph, "stem")] == pytest.approx(stream.tolist(), rel=1e-4)


def test_a_flattened_channel_is_the_mean_of_its_positions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    graph = slim.trace(model, INPUTS)
    data = [x for x, _ in batches(1)]
    values = slim.score(graph, "activation", loader=data).values
    with torch.no_grad():
        expected = model[1](model[0](data[0])).mean((0, 2, 3))
    assert values[space(graph, "0")] == pytest.approx(expected.tolist(), rel=1e-4)
