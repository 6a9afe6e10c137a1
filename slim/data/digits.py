"""scikit-learn's handwritten digits: 1,797 real images inside the wheel, no download."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from slim.data.augment import resize
from slim.data.memory import MemorySource
from slim.data.splits import permutation

_COUNT = 1797
_TEST = 360


class Digits:
    """Alpaydin and Kaynak 1998 (UCI), 8x8 grey levels, scaled up to ``image_size``.

    It has no official test set in scikit-learn: the last fifth of a fixed shuffle, 360 images, is the test set.
    """

    name = "digits"
    num_classes = 10
    in_channels = 1
    class_names = tuple("0123456789")
    mean: tuple[float, ...] = (0.3050,)
    std: tuple[float, ...] = (0.3233,)
    mirror = False
    where = "embedded"
    has_val = False

    def __init__(self, image_size: int = 32) -> None:
        self.image_size = image_size
        # Upsampled four times, a pixel of the original is four: a shift of two is half of it.
        self.padding = image_size // 16

    def prepare(self) -> None:
        """Nothing to fetch."""

    def count(self, split: str) -> int:
        """Images of ``split``."""
        return _TEST if split == "test" else _COUNT - _TEST

    def open(self, split: str, index: torch.Tensor) -> MemorySource:
        """The images of ``split`` at positions ``index``, uint8 (n, 1, size, size)."""
        levels, digits = levels_and_digits()
        order = permutation(_COUNT)
        chosen = order[_COUNT - _TEST :] if split == "test" else order[: _COUNT - _TEST]
        chosen = chosen[index]
        images = (levels[chosen].unsqueeze(1) * (255 / 16)).round().to(torch.uint8)
        return MemorySource(resize(images, self.image_size), digits[chosen])


@functools.cache
def levels_and_digits() -> tuple[Tensor, Tensor]:
    """Levels float64 (1797, 8, 8) in [0, 16] and digits int64 (1797,): unpacked once, so not to be written to."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images), torch.from_numpy(found.target)
