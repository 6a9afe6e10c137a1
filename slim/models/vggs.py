"""VGG with BatchNorm in the form used for CIFAR: no hidden linear layers, one classifier after a global mean."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from slim.errors import SlimError
from slim.models.checks import integer
from slim.models.initialization import init_convolutions, init_gamma

DEPTHS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    19: (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512),
}


class VGG(nn.Module):
    """Convolutions 3x3 with BatchNorm and ReLU, max-pooling at ``"M"``, global mean, one linear layer."""

    def __init__(self, widths: tuple[int | str, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for entry in widths:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(width, entry, 3, padding=1, bias=False),
                nn.BatchNorm2d(entry),
                nn.ReLU(inplace=True),
            ]
            width = entry
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]


def vgg(
    depth: int = 16,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    widths: Iterable[int | str] | None = None,
    gamma_init: float | None = 0.5,
) -> VGG:
    """VGG for small images (Simonyan and Zisserman 2015; CIFAR form of Network Slimming).

    Args:
        depth: 11, 13, 16 or 19; counts the layers of the ImageNet form, three of which are its linear layers.
        num_classes: Classes, outputs of the last layer.
        in_channels: Channels of the images.
        widths: Free form in place of ``depth``, such as ``[64, "M", 128, "M", 256, 256]``: channels of each
            convolution, ``"M"`` halves the image.
        gamma_init: Initial value of every BatchNorm scale; None leaves PyTorch's 1.

    Departure from the reference implementation: a global mean replaces its 2x2 one, which is the same on 32x32.

    >>> sum(p.numel() for p in vgg(19).parameters())
    20035018

    Raises:
        SlimError: unknown depth, or widths that are not whole numbers and ``"M"``.
    """
    if widths is None:
        if depth not in DEPTHS:
            known = ", ".join(map(str, DEPTHS))
            raise SlimError(f"depth of vgg must be one of {known}. Got depth={depth!r}. Set model.depth.")
        plan = DEPTHS[depth]
    else:
        plan = _checked(widths)
    model = VGG(
        plan, integer("num_classes", num_classes, "num_classes"), integer("in_channels", in_channels, "in_channels")
    )
    init_convolutions(model)
    nn.init.normal_(model.classifier.weight, std=0.01)
    nn.init.zeros_(model.classifier.bias)
    init_gamma(model, gamma_init)
    return model


def _checked(widths: Iterable[int | str]) -> tuple[int | str, ...]:
    plan = () if isinstance(widths, str) else tuple(widths)
    for entry in plan:
        if entry != "M" and (isinstance(entry, bool) or not isinstance(entry, int) or entry < 1):
            raise SlimError(
                f'widths must hold channel counts and "M". Got {entry!r} in widths={widths!r}. '
                "Set model.widths, for example to [64,M,128,M,256]."
            )
    if not any(isinstance(entry, int) for entry in plan):
        raise SlimError(f"widths must hold at least one convolution. Got widths={widths!r}. Set model.widths.")
    return plan
