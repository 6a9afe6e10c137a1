"""What a convolution or a linear layer reads to make its outputs, at some positions: rows of a linear regression."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def regresses(layer: nn.Module) -> bool:
    """Whether :func:`patches` knows the layer: a linear one, or a convolution that is not transposed."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd))


def blocks_of(layer: nn.Module) -> int:
    """Blocks of channels that do not see each other: the groups of a convolution."""
    return int(getattr(layer, "groups", 1))


def draw(layer: nn.Module, output: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` different flat positions of an output (N, C, ...), of a linear layer (N, ..., C), ascending."""
    inner = output.shape[1:-1] if isinstance(layer, nn.Linear) else output.shape[2:]
    return torch.randperm(math.prod(inner), generator=generator)[:count].sort().values.to(output.device)


def outputs_at(layer: nn.Module, output: Tensor, where: Tensor) -> Tensor:
    """The values (N, P, C) of an output at the flat positions ``where`` (P,)."""
    if isinstance(layer, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])[:, where]
    return output.flatten(2)[:, :, where].transpose(1, 2)


def patches(layer: nn.Module, x: Tensor, output: Tensor, where: Tensor) -> Tensor:
    """What a layer reads for its outputs at ``where``: (N, P, C_in, K), K the size of the kernel.

    Times ``layer.weight`` (C_out, C_in / groups, K) per block of channels this is :func:`outputs_at`, but for the bias.

    Args:
        layer: One that :func:`regresses`.
        x: Its input.
        output: Its output, for the shape.
        where: (P,) flat positions of the output.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, where, :, None]
    assert isinstance(layer, _ConvNd)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    index = _reads(layer, output.shape[2:], padded.shape[2:], where)
    return padded.flatten(2)[:, :, index].permute(0, 2, 1, 3)


def _reads(layer: _ConvNd, made: torch.Size, padded: torch.Size, where: Tensor) -> Tensor:
    """Flat positions (P, K) of the padded input that each of the flat output positions ``where`` (P,) reads."""
    index = torch.zeros(len(where), 1, dtype=torch.int64, device=where.device)
    rest = where
    stride_out, stride_in = math.prod(made), math.prod(padded)
    for axis, (out, into) in enumerate(zip(made, padded, strict=True)):
        stride_out, stride_in = stride_out // out, stride_in // into
        start = rest.div(stride_out, rounding_mode="floor") * layer.stride[axis]
        rest = rest % stride_out
        reach = torch.arange(layer.kernel_size[axis], device=where.device) * int(layer.dilation[axis])
        along = (start[:, None] + reach) * stride_in
        index = (index[:, :, None] + along[:, None, :]).flatten(1)
    return index
