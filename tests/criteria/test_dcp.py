"""dcp: slopes against finite differences, the first choice against trying all, and classes that matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.criteria.dcp import _slopes, order
from slim.errors import SlimError
from tests.criteria.networks import batches, residual, space


def test_slopes_are_the_gradients_of_the_weights_of_an_input():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    present = np.array([True, False, True, True])

    def loss(output):
        return output.pow(3).sum()

    slopes = _slopes(layer, x, loss, present)
    at = layer.weight.detach().clone()
    at[:3, 1] = 0  # input 1 is the second of the first block
    for channel, (rows, column) in enumerate([(slice(0, 3), 0), (slice(0, 3), 1), (slice(3, 6), 0), (slice(3, 6), 1)]):
        total = 0.0
        for index in np.ndindex(3, 3, 3):
            values = []
            for step in (1e-5, -1e-5):
                changed = at.clone()
                changed[rows][index[0], column, index[1], index[2]] += step
                values.append(float(loss(nn.functional.conv2d(x, changed, layer.bias.detach(), groups=2))))
            total += ((values[0] - values[1]) / 2e-5) ** 2
        assert slopes[channel] == pytest.approx(total, rel=1e-5)


def test_without_classes_the_first_choice_is_the_steepest_of_the_error():
    """At weights of zero the gradient of the error is the correlation of each input with the outputs."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False)
    x = torch.randn(50, 6)
    with torch.no_grad():
        dense = layer(x)
    place = order(layer, x, dense, torch.zeros(50, dtype=torch.int64), np.arange(6), 0.0, 0.01)
    assert np.argmax(place) == int((dense.T @ x).norm(dim=0).argmax())
    assert sorted(place) == pytest.approx(np.arange(1, 7) / 6)
    twins = order(layer, x, dense, torch.zeros(50, dtype=torch.int64), np.array([0, 0, 1, 1, 2, 2]), 0.0, 0.01)
    assert twins[0] == twins[1] and len(set(twins)) == 3


def test_a_channel_that_tells_the_classes_apart_comes_before_a_louder_one():
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    telling = (labels * 2.0 - 1)[:, None] * 0.5
    x = torch.cat([telling + 0.1 * torch.randn(200, 1), 1.5 * torch.randn(200, 1)], 1)
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.eye(2)
    with torch.no_grad():
        dense = layer(x)
    places = [order(layer, x, dense, labels, np.arange(2), weight, 0.1) for weight in (0.0, 10.0)]
    assert np.argmax(places[0]) == 1 and np.argmax(places[1]) == 0


def test_every_layer_has_each_place_once_and_targets_must_be_classes():
    _, graph = residual()
    scores = slim.score(graph, "dcp", loader=batches(), images=16)
    assert sorted(scores.values[space(graph, "first")]) == pytest.approx(np.arange(1, 6) / 5)
    with pytest.raises(SlimError, match="one class per sample"):
        slim.score(graph, "dcp", loader=[(x, x) for x, _ in batches()])
    with pytest.raises(SlimError, match="Got targets of type list"):
        slim.score(graph, "dcp", loader=[(x, [{"labels": y}]) for x, y in batches()])
    with pytest.raises(SlimError, match=r"in \(0, 1\]"):
        slim.score(graph, "dcp", loader=batches(), share=0)


def test_as_many_images_as_asked_for_whatever_the_batches_are():
    _, graph = residual()
    every = [torch.cat(part) for part in zip(*batches(), strict=True)]
    few = [(every[0][:6], every[1][:6])]
    scores = [slim.score(graph, "dcp", loader=loader, images=6).values for loader in ([tuple(every)], few)]
    np.testing.assert_array_equal(*scores)
    assert (scores[0] != slim.score(graph, "dcp", loader=[tuple(every)]).values).any()


def test_half_precision_chooses_as_single_does_and_slopes_that_are_no_numbers_end():
    """Sums of squares of halves are infinite; behind NaN the channels that are chosen came first for ever."""
    torch.manual_seed(0)
    layer, x, labels = nn.Linear(6, 4), 100 * torch.randn(50, 6), torch.arange(50) % 2
    with torch.no_grad():
        whole = order(layer, x, layer(x), labels, np.arange(6), 1.0, 0.01)
        layer, x = layer.half(), x.half()
        assert (order(layer, x, layer(x), labels, np.arange(6), 1.0, 0.01) == whole).all()
        assert np.isnan(order(layer, x, layer(x), labels, np.arange(6), float("nan"), 0.01)).all()


@pytest.mark.parametrize("option", [{"images": 0}, {"images": "all"}, {"share": "all"}, {"weight": float("nan")}])
def test_wrong_options_are_one_line(option):
    _, graph = residual()
    with pytest.raises(SlimError, match=f"{next(iter(option))} must be"):
        slim.score(graph, "dcp", loader=batches(), **option)
