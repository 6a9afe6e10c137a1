"""The ladder: one network as PyTorch runs it, in a runtime, in int8, and thin; latency of all rungs in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slim.deploy.capture import arguments
from slim.selection.latency import side_by_side

RUNGS = ("dense fp32 eager", "dense fp32", "dense int8", "thin fp32", "thin int8")
"""Eager is PyTorch; the others run in one runtime. ``dense fp32`` is what speed is compared with."""


def latencies(
    rungs: Mapping[str, nn.Module], example: Any, *, batches: Sequence[int] = (1, 64), seconds: float = 0.3
) -> dict[str, dict[int, float]]:
    """Median milliseconds of one forward, by rung and batch size, on the CPU; the rungs take turns.

    Args:
        rungs: Name -> network, with the same inputs.
        example: One input; its first sample is repeated, and random numbers take the place of floats.
        batches: Batch sizes.
        seconds: Spent on each rung and batch size, at least five runs.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in rungs}
    for batch in batches:
        args, kwargs = arguments(example, batch)
        inputs = tree_map_only(Tensor, _random, kwargs or args)
        for name, millis in zip(rungs, side_by_side(list(rungs.values()), inputs, seconds), strict=True):
            found[name][batch] = millis
    return found


def _random(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape).normal_() if tensor.is_floating_point() else tensor
