"""What a cut did: accuracies on the same batches, equality of mask and rebuild, layers that became too thin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import RunFailed


@dataclass(frozen=True)
class Judged:
    """What is kept of a network that is let go: its accuracy, and its logits ``(N, classes)`` on one batch."""

    accuracy: float
    logits: Tensor


def accuracies(networks: Mapping[str, nn.Module], batches: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Fraction of right answers of every network, in eval mode and full precision.

    Args:
        networks: Name -> network; their modes and devices are as before when this returns.
        batches: Of ``(x (N, C, H, W), y (N,))``; read once.
        device: Where to compute.

    >>> batch = (torch.eye(2), torch.tensor([0, 1]))
    >>> accuracies({"same": nn.Identity()}, [batch], torch.device("cpu"))
    {'same': 1.0}
    """
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(_ready(network, device))
        right = {name: torch.zeros((), dtype=torch.int64, device=device) for name in networks}
        count = 0
        with torch.inference_mode():
            for x, y in batches:
                x, y = x.to(device), y.to(device)
                count += len(y)
                for name, network in networks.items():
                    right[name] += (network(x).argmax(1) == y).sum()
    return {name: int(total) / max(count, 1) for name, total in right.items()}


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """Logits ``(N, classes)`` of ``x (N, C, H, W)``, in eval mode, where ``x`` is."""
    with _ready(network, x.device), torch.inference_mode():
        found: Tensor = network(x)
    return found


@contextmanager
def _ready(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the network is in eval mode on ``device``; afterwards every module is where and as it was."""
    modes = {module: module.training for module in network.modules()}
    place = next((parameter.device for parameter in network.parameters()), device)
    network.to(device).eval()
    try:
        yield
    finally:
        network.to(place)
        for module, training in modes.items():
            module.training = training


def check_equal(masked: Tensor, thin: Tensor, tolerance: float = 1e-3) -> float:
    """Largest difference of the logits of the masked and the rebuilt network, relative to their size.

    Raises:
        RunFailed: The two are not the same function: the surgery is wrong and nothing after it would mean anything.
    """
    error = float((masked.double() - thin.double()).abs().max() / masked.double().abs().max().clamp_min(1e-6))
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
