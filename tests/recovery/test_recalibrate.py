"""Fresh statistics: the plain average, deterministic, and nothing else changed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slim.errors import SlimError
from slim.recovery import recalibrate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.ReLU(), nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, momentum=None), nn.InstanceNorm2d(5, track_running_stats=True),
    )  # fmt: skip


def batches(count: int = 3):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=generator) + 3, torch.zeros(8)) for _ in range(count)]


def test_it_is_the_plain_average_over_the_batches():
    net, data = network(), batches()
    assert recalibrate(net, data, 2) == 2
    x = [net[0](b[0]) for b in data[:2]]
    torch.testing.assert_close(net[1].running_mean, torch.stack([v.mean((0, 2, 3)) for v in x]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([v.var((0, 2, 3)) for v in x]).mean(0))
    # Later layers see earlier ones in training mode and dropout off, as at test time on that batch.
    y = [net[4](torch.relu(nn.functional.batch_norm(v, None, None, net[1].weight, net[1].bias, True))) for v in x]
    torch.testing.assert_close(net[5].running_mean, torch.stack([v.mean((0, 2, 3)) for v in y]).mean(0))


def test_nothing_else_changes():
    net = network()
    net.train()
    net[4].eval()
    net[1](torch.randn(4, 4, 6, 6))
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" not in k or k.startswith("6")}
    recalibrate(net, batches())
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name
    assert [m.training for m in net] == [True, True, True, True, False, True, True]
    assert (net[1].momentum, net[5].momentum) == (0.3, None)
    assert all(p.grad is None for p in net.parameters())


class Drawn:
    """Batches that draw from every generator a loader may use."""

    def __iter__(self):
        for _ in range(3):
            yield torch.randn(8, 3, 8, 8) + float(np.random.rand()) + random.random()


@pytest.mark.parametrize("kind", ["loader", "drawn"])
def test_the_same_seed_gives_the_same_bits_whatever_came_before(kind):
    data = TensorDataset(torch.randn(40, 3, 8, 8))
    loader = DataLoader(data, batch_size=8, shuffle=True) if kind == "loader" else Drawn()
    found = []
    for waste, seed in ((0, 0), (7, 0), (0, 1)):
        net = network()
        torch.rand(waste), np.random.rand(waste), [random.random() for _ in range(waste)]
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        recalibrate(net, loader, 3, seed=seed)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1]) and random.getstate() == states[2]
        found.append(net[1].running_mean)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_any_loader():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x, scale):
            return self.norm(x * scale)

    x = torch.randn(6, 3)
    for data, inputs in (
        ([{"x": x, "scale": torch.tensor(2.0)}], None),
        ([(torch.zeros(6), x)], lambda batch: (batch[1], torch.tensor(2.0))),
    ):
        net = Named()
        recalibrate(net, data, inputs=inputs)
        torch.testing.assert_close(net.norm.running_mean, 2 * x.mean(0))


def test_a_list_of_images_is_one_argument_with_a_sample_each():
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, images):
            return self.norm(torch.stack(images))

    net, images = Stacked(), list(torch.randn(4, 1, 5, 5))
    assert recalibrate(net, [(images, None)]) == 1
    torch.testing.assert_close(net.norm.running_mean, torch.stack(images).mean().view(1))
    with pytest.raises(SlimError, match="at least 2 samples"):
        recalibrate(net, [(images[:1], None)])


def test_edges():
    net = network()
    before = net[1].running_mean.clone()
    assert recalibrate(net, batches(), 0) == 0
    assert recalibrate(nn.Linear(2, 2), [torch.zeros(4, 2)]) == 0
    with pytest.raises(SlimError, match="at least 2 samples"):
        recalibrate(net, [torch.zeros(1, 3, 8, 8)])
    assert torch.equal(net[1].running_mean, before)
    assert net[1].momentum == 0.3
    with pytest.raises(SlimError, match="at least 0"):
        recalibrate(net, batches(), -1)
    assert recalibrate(net, [*batches(1), torch.zeros(1, 3, 8, 8)]) == 1


def test_a_layer_that_no_batch_comes_to_keeps_its_statistics():
    class Domains(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms, self.head = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)]), nn.BatchNorm1d(3)

        def forward(self, x):
            x = self.norms[0](x)
            return (x, self.head(x)) if self.training else x

    net, x = Domains(), torch.randn(6, 3)
    for norm in (net.norms[1], net.head):
        norm(5 + 2 * x)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    recalibrate(net, [x])
    torch.testing.assert_close(net.norms[0].running_mean, x.mean(0))
    for name, value in net.state_dict().items():
        assert name.startswith("norms.0.running") or torch.equal(value, before[name]), name
