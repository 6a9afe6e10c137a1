"""fisher: OBD's saliency from one backward pass per sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import slim
from slim.errors import SlimError
from tests.criteria.networks import INPUTS, batches, residual, space


def per_sample(model, data, products):
    """Mean over samples of half the square of the summed products, one backward pass per sample."""
    total, samples = 0.0, 0
    model.eval()
    for x, y in data:
        for i in range(len(x)):
            model.zero_grad()
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
            total = total + products(model).double() ** 2 / 2
            samples += 1
    model.zero_grad()
    return (total / samples).tolist()


def test_it_is_the_diagonal_of_optimal_brain_damage():
    model, graph = residual()
    data = batches(2)
    values = slim.score(graph, "fisher", loader=data).values

    def free(m):
        return m.first_norm.weight.detach() * m.first_norm.weight.grad

    def stream(m):
        return sum(n.weight.detach() * n.weight.grad for n in (m.stem_norm, m.second_norm))

    assert values[space(graph, "first")] == pytest.approx(per_sample(model, data, free), rel=1e-3, abs=1e-9)
    assert values[space(graph, "stem")] == pytest.approx(per_sample(model, data, stream), rel=1e-3, abs=1e-9)


def test_with_beta_the_gate_takes_the_whole_output():
    model, graph = residual()
    data = batches(2)
    values = slim.score(graph, "fisher", loader=data, beta=True).values

    def free(m):
        norm = m.first_norm
        return norm.weight.detach() * norm.weight.grad + norm.bias.detach() * norm.bias.grad

    assert values[space(graph, "first")] == pytest.approx(per_sample(model, data, free), rel=1e-3, abs=1e-9)


def test_without_scales_the_gates_stand_behind_the_layers():
    model, graph = residual(norm=False)
    data = batches(2)
    values = slim.score(graph, "fisher", loader=data).values

    def free(m):
        layer = m.first
        return (layer.weight.detach() * layer.weight.grad).sum((1, 2, 3)) + layer.bias.detach() * layer.bias.grad

    assert values[space(graph, "first")] == pytest.approx(per_sample(model, data, free), rel=1e-3, abs=1e-9)


def test_a_normalization_called_as_a_function_is_no_gate():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)
            self.gamma, self.beta = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

        def forward(self, x):
            x = nn.functional.instance_norm(self.conv(x), weight=self.gamma, bias=self.beta)
            return self.head(torch.relu(x).mean((2, 3)))

    for net, inner in ((Called(), "conv"), (nn.Sequential(Called()), "0.conv")):
        graph = slim.trace(net, INPUTS)
        assert slim.score(graph, "fisher", loader=batches()).covered[space(graph, inner)].all()
        assert slim.score(graph, "bn_mean").covered[space(graph, inner)].all()


def test_an_in_place_activation_behind_the_gate_is_no_trouble():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    graph = slim.trace(model, INPUTS)
    assert slim.score(graph, "fisher", loader=batches()).values.any()
    assert all(p.grad is None for p in model.parameters())


class Frames(nn.Module):
    """Classifies films (N, T, 3, H, W): its layers see every frame as a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, films):
        frames = F.relu(self.norm(self.conv(films.flatten(0, 1)))).mean((2, 3))
        return self.head(frames.unflatten(0, films.shape[:2]).mean(1))


def test_samples_that_a_network_takes_apart_are_counted_whole_or_refused():
    torch.manual_seed(0)
    model, films, labels = Frames(), torch.randn(4, 5, 3, 4, 4), torch.tensor([0, 1, 2, 0])
    graph = slim.trace(model, films[:1])
    with pytest.raises(SlimError, match="20 for a batch of 4"):
        slim.score(graph, "fisher", loader=[(films, labels)])
    single = list(zip(films.split(1), labels.split(1), strict=True))
    values = slim.score(graph, "fisher", loader=single).values
    expected = per_sample(model, single, lambda m: m.norm.weight.detach() * m.norm.weight.grad)
    assert values[space(graph, "conv")] == pytest.approx(expected, rel=1e-3, abs=1e-9)
