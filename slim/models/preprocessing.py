"""How a pretrained network wants its images: mean, deviation and size, from the network's own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

_ATTRIBUTE = "_preprocessing"


def preprocessing(network: nn.Module) -> dict[str, Any]:
    """``mean`` and ``std`` per channel, of pixels in [0, 1], and ``image_size`` that ``network`` was trained with.

    Known for networks of timm (their ``pretrained_cfg``), and for those of torchvision and transformers that this
    package built with pretrained weights. Empty for all others: the data's own statistics fit them.

    >>> preprocessing(nn.Identity())
    {}
    """
    known = getattr(network, _ATTRIBUTE, None)
    if known is not None:
        return dict(known)
    found = getattr(network, "pretrained_cfg", None)
    if not isinstance(found, dict) or "mean" not in found:
        return {}
    size = found.get("input_size", (3, None, None))[-1]
    return _entry(found["mean"], found["std"], size)


def set_preprocessing(network: nn.Module, mean: Sequence[float], std: Sequence[float], image_size: int | None) -> None:
    """Write down, on ``network``, what :func:`preprocessing` gives."""
    setattr(network, _ATTRIBUTE, _entry(mean, std, image_size))


def _entry(mean: Sequence[float], std: Sequence[float], image_size: int | None) -> dict[str, Any]:
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std)), "image_size": image_size}
