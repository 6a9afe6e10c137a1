"""Initial weights of networks trained from scratch."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError


def init_gamma(model: nn.Module, gamma_init: float | None) -> None:
    """Set every BatchNorm's gamma to ``gamma_init`` and its beta to 0, in place.

    Network Slimming (Liu et al. 2017, arXiv:1708.06519, section 4.2) starts all scales at 0.5 instead of 1: a smaller
    value is closer to zero and was found to cost no accuracy. ``None`` leaves the layers as they are.

    Raises:
        SlimError: ``gamma_init`` is not a positive finite number.
    """
    if gamma_init is None:
        return
    value = gamma_init
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise SlimError(f"gamma_init must be above 0. Got gamma_init={value!r}. Set model.gamma_init to 0.5.")
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.constant_(module.weight, float(value))
            nn.init.zeros_(module.bias)


def init_convolutions(model: nn.Module) -> None:
    """Initialize every convolution from N(0, 2 / fan_out), biases 0, in place (He et al. 2015, arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
