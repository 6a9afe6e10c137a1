"""What is done to the weights of the dense network: zeros, 2:4 zeros, factors, three values.

The weights that count are those of all convolutions and linear layers but the first convolution's, which 2:4 cannot
take (three input channels) and the literature on ternary weights and low rank leaves alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


def layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers in order, the first left out."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:]


def unstructured(model: nn.Module, share: float, *, whole: bool) -> None:
    """Magnitude pruning to ``share`` of all weights in [0, 1) (Han et al. 2015); what is zero stays zero.

    Args:
        model: its layers get masks of `torch.nn.utils.prune`.
        share: of the weights that are zero afterwards.
        whole: one ranking over all layers, or the same share of each.
    """
    model.to(memory_format=torch.contiguous_format)  # what global_unstructured can flatten
    chosen = [(layer, "weight") for layer in layers(model)]
    if whole:
        total = sum(layer.weight.numel() for layer, _ in chosen)
        gone = sum(int((layer.weight == 0).sum()) for layer, _ in chosen)
        prune.global_unstructured(chosen, prune.L1Unstructured, amount=round(share * total) - gone)
        return
    for layer, name in chosen:
        gone = int((layer.weight == 0).sum())
        prune.l1_unstructured(layer, name, amount=round(share * layer.weight.numel()) - gone)


def two_four(model: nn.Module) -> None:
    """Of four neighbours along the input channels the two largest stay (Mishra et al. 2021, arXiv:2104.08378)."""
    for layer in layers(model):
        prune.custom_from_mask(layer, "weight", two_four_mask(layer.weight.detach()))


def two_four_mask(weight: Tensor) -> Tensor:
    """Ones and zeros in the shape of ``weight``, ``(out, in)`` or ``(out, in, kh, kw)`` with in divisible by 4."""
    last = weight.movedim(1, -1)
    four = last.abs().reshape(-1, 4)
    mask = torch.zeros_like(four).scatter_(1, four.topk(2, dim=1).indices, 1.0)
    return mask.reshape(last.shape).movedim(-1, 1)


class StraightThrough(torch.autograd.Function):
    """`ternary` forwards, the identity backwards."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Exactly three values: ``weight + (ternary - weight).detach()`` would round."""
        return ternary(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient as it comes."""
        return grad


class Ternary(nn.Module):
    """-a, 0, a per layer, straight-through gradient: Li et al. 2016, Ternary Weight Networks, arXiv:1605.04711."""

    def forward(self, weight: Tensor) -> Tensor:
        """The projection, in the shape of ``weight``."""
        projected: Tensor = StraightThrough.apply(weight)
        return projected


def ternary(weight: Tensor) -> Tensor:
    """Zero below 0.7 times the mean size; the others sign times their mean size (equations 5 and 6 of the paper)."""
    size = weight.abs()
    large = size > 0.7 * size.mean()
    return torch.where(large, size[large].mean() * weight.sign(), 0.0)


def make_ternary(model: nn.Module) -> None:
    """Every layer but the first computes with three values from now on; the optimizer goes on with the full ones."""
    for layer in layers(model):
        parametrize.register_parametrization(layer, "weight", Ternary())


def low_rank(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    """Two convolutions, ``rank`` channels between them: the best approximation of the filters, by SVD.

    Zhang et al. 2016, arXiv:1505.06798, section 2.1, of the weights instead of the responses. At full rank the two
    compute what ``conv`` computes.
    """
    first = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, conv.stride, conv.padding, bias=False)  # type: ignore[arg-type]
    second = nn.Conv2d(rank, conv.out_channels, 1, bias=conv.bias is not None)
    u, s, v = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    with torch.no_grad():
        first.weight.copy_((root[:, None] * v[:rank]).reshape(first.weight.shape))
        second.weight.copy_((u[:, :rank] * root).reshape(second.weight.shape))
        if conv.bias is not None and second.bias is not None:
            second.bias.copy_(conv.bias)
    return nn.Sequential(first, second).to(memory_format=torch.channels_last)


def ranks(model: nn.Module, kept: float) -> list[int]:
    """Rank per convolution but the first: the largest equal share of each layer's weights within ``kept`` of all."""
    convs = [m for m in layers(model) if isinstance(m, nn.Conv2d)]
    budget = kept * sum(m.weight.numel() for m in layers(model))
    fixed = sum(m.weight.numel() for m in layers(model) if isinstance(m, nn.Linear))

    def at(share: float) -> tuple[list[int], int]:
        one = [m.weight[0].numel() + m.out_channels for m in convs]  # weights of one more rank
        found = [max(1, int(share * m.weight.numel() / w)) for m, w in zip(convs, one, strict=True)]
        return found, fixed + sum(r * w for r, w in zip(found, one, strict=True))

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] <= budget else (low, middle)
    return at(low)[0]


def factor(model: nn.Sequential, chosen: list[int]) -> None:
    """Put `low_rank` of these ranks in the place of every convolution but the first, in place."""
    places = [i for i, m in enumerate(model) if isinstance(m, nn.Conv2d)][1:]
    for i, rank in zip(places, chosen, strict=True):
        conv = model[i]
        assert isinstance(conv, nn.Conv2d)
        model[i] = low_rank(conv, rank)


def settle(model: nn.Module) -> None:
    """Masks and projections become plain weights, in place."""
    for layer in layers(model):
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")
        elif parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")


def densities(model: nn.Module) -> list[float]:
    """Share of the weights that are not zero, per layer, the first left out."""
    return [float((layer.weight != 0).float().mean()) for layer in layers(model)]
