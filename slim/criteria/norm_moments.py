"""Moments of a normalization layer's output, from its own parameters: no data are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slim.criteria.tensors import tensor
from slim.errors import SlimError

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


def output_moments(graph: ChannelGraph, name: str) -> Iterator[tuple[npt.NDArray[np.int64], Tensor, Tensor]]:
    """(groups (C,), mean (C,), variance (C,)) of the output of every normalization layer, float64.

    With running statistics m, v the output has mean beta and variance gamma^2 v / (v + eps): a channel that hardly
    varies before the layer (v near eps or below) does not vary behind it, whatever its gamma.
    """
    scales = [s for s in graph.scales if s.weight is not None]
    if not scales:
        raise SlimError(
            f"Criterion {name} reads the statistics of normalization layers. Got a network without any."
            " Set criterion=l1."
        )
    modules = dict(graph.model.named_modules())
    for scale in scales:
        assert scale.weight is not None
        gamma = tensor(graph, scale.weight).double()
        beta = tensor(graph, scale.bias).double() if scale.bias is not None else torch.zeros_like(gamma)
        variance = gamma.square()
        if scale.var is not None:
            running = tensor(graph, scale.var).double()
            eps = float(getattr(modules.get(scale.module), "eps", 0.0))  # none where it is a function's
            variance = variance * running / (running + eps)
        yield scale.groups, beta, variance


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of relu(z) for Gaussian z.

    >>> mean, variance = relu_moments(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    >>> round(float(mean), 4), round(float(variance), 4)
    (0.3989, 0.3408)
    """
    deviation = variance.sqrt().clamp_min(1e-30)
    z = mean / deviation
    cdf = torch.special.ndtr(z)
    pdf = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    first = mean * cdf + deviation * pdf
    second = (mean.square() + variance) * cdf + mean * deviation * pdf
    return first.clamp_min(0), (second - first.square()).clamp_min(0)
