"""Networks that a run must refuse."""

from __future__ import annotations

from torch import Tensor, nn


def no_norm(num_classes: int, in_channels: int) -> nn.Module:
    """Without any scale to press on."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )


def wrong_classes(num_classes: int, in_channels: int) -> nn.Module:
    """With one logit too many."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes + 1)
    )


class _Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("boom")


def breaks(num_classes: int) -> nn.Module:
    """Cannot read its input."""
    return _Breaks()


def not_a_number(graph):
    """A criterion that says nothing."""
    for scale in graph.scales:
        yield scale.groups, [float("nan")] * len(scale.groups)
