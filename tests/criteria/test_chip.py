"""chip: against singular values of the maps themselves, with a channel and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.criteria.chip import independence
from slim.errors import SlimError
from tests.criteria.networks import batches, residual, space


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (4, 1)])
def test_independence_is_the_loss_of_nuclear_norm(shape):
    maps = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[2] = 0
    for channel, found in enumerate(independence(maps)):
        without = np.delete(maps.numpy(), channel, 0)
        wanted = np.linalg.svd(maps.numpy(), compute_uv=False).sum() - np.linalg.svd(without, compute_uv=False).sum()
        assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_maps_are_those_the_next_layer_reads_and_images_are_counted():
    model, graph = residual()
    model.eval()
    data = batches(3, size=8)
    seen = []
    model.second.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        for x, _ in data:
            model(x)
    maps = torch.cat(seen)[:10]
    wanted = torch.stack([independence(each.flatten(1)) for each in maps]).mean(0)
    found = slim.score(graph, "chip", loader=data, images=10).values[space(graph, "first")]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_every_map_counts_once_also_of_frames_and_of_a_layer_that_no_batch_comes_to():
    class Frames(nn.Module):
        def __init__(self, network, frames):
            super().__init__()
            self.network, self.frames = network, frames

        def forward(self, x):
            return self.network(x.repeat_interleave(self.frames, 0))

    model, _ = residual()
    once, often = (slim.trace(Frames(model, frames), torch.zeros(1, 3, 8, 8)) for frames in (1, 3))
    wanted, found = (slim.score(graph, "chip", loader=batches(2, size=8)) for graph in (once, often))
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-6)
    with pytest.raises(SlimError, match="images must be"):
        slim.score(once, "chip", loader=batches(), images=0)

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3)
            self.both = True

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(x) + self.c(x) if self.both else self.b(x)

    network = Sometimes()
    graph = slim.trace(network, torch.zeros(1, 3, 8, 8))
    network.both = False
    seen = []
    network.b.register_forward_pre_hook(lambda m, args: seen.extend(args[0]))
    score = slim.score(graph, "chip", loader=batches(1, size=8)).values[graph.axes["a.weight", 0]]
    wanted = torch.stack([independence(maps.flatten(1)) for maps in seen]).mean(0)
    np.testing.assert_allclose(score, wanted, rtol=1e-6)
