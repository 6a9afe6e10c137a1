"""A multi-layer perceptron with BatchNorm: Network Slimming's 784-500-300-10 for MNIST."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from slim.models.checks import integer
from slim.models.initialization import init_gamma


class MLP(nn.Module):
    """Flatten, then linear layers with BatchNorm and ReLU between them."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for size in hidden:
            layers += [nn.Linear(width, size, bias=False), nn.BatchNorm1d(size), nn.ReLU(inplace=True)]
            width = size
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W), or vectors (N, features), to logits (N, classes)."""
        return self.classifier(self.features(torch.flatten(x, 1)))  # type: ignore[no-any-return]


def mlp(
    hidden: Iterable[int] = (500, 300),
    *,
    image_size: int = 28,
    num_classes: int = 10,
    in_channels: int = 1,
    gamma_init: float | None = 0.5,
) -> MLP:
    """Perceptron of Network Slimming (Liu et al. 2017, section 4.1); 784-500-300-10 on MNIST.

    Args:
        hidden: Units of the hidden layers; at least one.
        image_size: Height and width of the images; the inputs are ``in_channels * image_size**2``.
        num_classes: Classes, outputs of the last layer.
        in_channels: Channels of the images.
        gamma_init: Initial value of every BatchNorm scale; None leaves PyTorch's 1.

    >>> [tuple(p.shape) for p in mlp().parameters() if p.ndim == 2]
    [(500, 784), (300, 500), (10, 300)]

    Raises:
        SlimError: a size that is not a whole number above 0, or no hidden layer.
    """
    sizes = tuple(integer("hidden", size, "model.hidden") for size in hidden)
    integer("the number of hidden layers", len(sizes), "model.hidden")
    side = integer("image_size", image_size, "data.image_size")
    inputs = integer("in_channels", in_channels, "in_channels") * side**2
    model = MLP(inputs, sizes, integer("num_classes", num_classes, "num_classes"))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.normal_(model.classifier.weight, std=0.01)
    init_gamma(model, gamma_init)
    return model
