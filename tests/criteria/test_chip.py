"""chip: against singular values of the maps themselves, with a channel and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import slim
from slim.criteria.chip import independence
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
