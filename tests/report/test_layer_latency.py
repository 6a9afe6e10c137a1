"""Where the time of a forward goes: every layer once, whatever is called how often, and no hook is left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slim.report.layer_latency import by_layer


class Twice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.again(self.first(x)))  # type: ignore[no-any-return]


def test_layers_of_both_networks_are_timed_and_left_alone() -> None:
    models = {"dense": Twice(8).train(), "thin": Twice(3).eval()}
    found = by_layer(models, torch.zeros(1, 4), ["first", "again", "gone"], batch=2, seconds=0.0)
    assert {name: set(layers) for name, layers in found.items()} == {name: {"first", "again"} for name in models}
    assert all(millis > 0 for layers in found.values() for millis in layers.values())
    assert models["dense"].training and not models["thin"].training
    assert not any(part._forward_hooks or part._forward_pre_hooks for net in models.values() for part in net.modules())
