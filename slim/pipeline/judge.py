"""What a cut did: accuracies on the same batches, equality of mask and rebuild, layers that became too thin."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import RunFailed


def accuracies(networks: Mapping[str, nn.Module], batches: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Fraction of right answers of every network, in eval mode and full precision.

    Args:
        networks: Name -> network; their modes and devices are as before when this returns.
        batches: Of ``(x (N, C, H, W), y (N,))``.
        device: Where to compute.

    >>> batch = (torch.eye(2), torch.tensor([0, 1]))
    >>> accuracies({"same": nn.Identity()}, [batch], torch.device("cpu"))
    {'same': 1.0}
    """
    with torch.inference_mode():
        # Copies, so that nobody's network is moved or switched; on one device at a time they are small beside the data.
        ready = {name: copy.deepcopy(network).to(device).eval() for name, network in networks.items()}
        right = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ready}
        count = 0
        for x, y in batches:
            x, y = x.to(device), y.to(device)
            count += len(y)
            for name, network in ready.items():
                right[name] += (network(x).argmax(1) == y).sum()
    return {name: int(total) / max(count, 1) for name, total in right.items()}


def check_equal(masked: nn.Module, thin: nn.Module, x: Tensor, tolerance: float = 1e-3) -> float:
    """Largest difference of the logits of the masked and the rebuilt network on ``x``, relative to their size.

    Raises:
        RunFailed: The two are not the same function: the surgery is wrong and nothing after it would mean anything.
    """
    with torch.inference_mode():
        a, b = copy.deepcopy(masked).eval()(x).double(), copy.deepcopy(thin).eval()(x).double()
    error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-6))
    if not error <= tolerance:
        raise RunFailed(
            f"The rebuilt network must compute what the masked one does. Got a relative difference of {error:.2g} in "
            f"its logits (allowed: {tolerance:g}). Please report the model; nothing was cut."
        )
    return error


def bottleneck(widths: Mapping[str, Sequence[int]]) -> str | None:
    """A line about the layer that the cut left thinnest, when less than a twentieth of it is left, else ``None``.

    A wide layer can consist of channels that are each worth little and together everything: a ranking that judges them
    one by one takes them all.

    Args:
        widths: Module -> (channels of the dense network, channels left).

    >>> bottleneck({"conv1": (64, 30), "conv9": (512, 2)})
    'conv9 keeps 2 of 512 channels; if accuracy suffers, set prune.max_layer_ratio=0.9, or another criterion.'
    >>> bottleneck({"conv1": (64, 4)})
    """
    thinnest = min(widths, key=lambda name: widths[name][1] / widths[name][0], default=None)
    if thinnest is None or widths[thinnest][1] >= 0.05 * widths[thinnest][0]:
        return None
    dense, left = widths[thinnest]
    return (
        f"{thinnest} keeps {left} of {dense} channels; if accuracy suffers, set prune.max_layer_ratio=0.9, "
        "or another criterion."
    )
