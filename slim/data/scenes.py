"""Scenes of several handwritten digits, whose boxes and masks are known: segmentation and detection offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from slim.data import options
from slim.data.digits import levels_and_digits
from slim.data.splits import permutation

SPLITS = ("train", "val", "test")
IGNORE = 255
"""Mask of a pixel that is neither digit nor background: the rim of a stroke."""

_COUNT, _TEST, _VAL = 1797, 360, 180
_INSIDE, _OUTSIDE = 0.5, 0.2  # opacity from which a pixel is the digit's, and up to which it is background
_TRIES = 20
_OVERLAP = 0.05  # of the smaller of two boxes


class Scene(NamedTuple):
    """One picture and what is on it."""

    image: Tensor  # uint8 (3, H, W)
    mask: Tensor  # uint8 (H, W): 0 background, digit + 1, 255 for the rim of a stroke
    boxes: Tensor  # float32 (n, 4): x1, y1, x2, y2 in pixels
    labels: Tensor  # int64 (n,): digit + 1; 0 is background


class DigitScenes(Dataset[Scene]):
    """scikit-learn's 1,797 real digits, one to ``digits`` of them per scene, coloured, on a coloured, noisy ground.

    Scene ``index`` of a split depends on (``seed``, split, ``index``) alone. The digits of training, validation and
    test scenes are disjoint sets of images.

    Args:
        split: ``train``, ``val`` or ``test``.
        count: Number of scenes.
        image_size: Height and width, pixels.
        digits: Most digits per scene.
        scale: Smallest and largest digit, as fractions of ``image_size``.
        seed: Of the scenes.
    """

    def __init__(
        self,
        split: str,
        count: int,
        *,
        image_size: int = 64,
        digits: int = 3,
        scale: tuple[float, float] = (0.35, 0.5),
        seed: int = 0,
    ) -> None:
        self.split, self.count, self.image_size = split, count, image_size
        self.digits, self.scale, self.seed = digits, scale, seed
        self._levels, self._labels = _digits(split)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        random = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        size = self.image_size
        canvas = _ground(random, size)
        mask = torch.zeros(size, size, dtype=torch.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        labels = []
        for _ in range(int(random.integers(1, self.digits + 1))):
            which = int(random.integers(len(self._labels)))
            side = round(size * float(random.uniform(*self.scale)))
            opacity = F.interpolate(self._levels[which][None, None], (side, side), mode="bilinear")[0, 0]
            colour = torch.from_numpy(random.uniform(140, 255, 3)).float().view(3, 1, 1)
            tight = _extent(opacity >= _INSIDE)
            place = _place(random, size, side, tight, boxes)
            if place is None:
                continue
            y, x = place
            pixels = canvas[:, y : y + side, x : x + side]
            pixels.copy_(pixels * (1 - opacity) + opacity * colour)
            classes = mask[y : y + side, x : x + side]
            classes[opacity > _OUTSIDE] = IGNORE
            classes[opacity >= _INSIDE] = int(self._labels[which]) + 1
            boxes.append(_moved(tight, y, x))
            labels.append(int(self._labels[which]) + 1)
        image = canvas.round_().clamp_(0, 255).to(torch.uint8)
        return Scene(image, mask, torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels))


def _digits(split: str) -> tuple[Tensor, Tensor]:
    """Opacities float32 (n, 8, 8) in [0, 1] and digits int64 (n,) of a split."""
    levels, digits = levels_and_digits()
    order = permutation(_COUNT)
    start, stop = {
        "train": (0, _COUNT - _TEST - _VAL),
        "val": (_COUNT - _TEST - _VAL, _COUNT - _TEST),
        "test": (_COUNT - _TEST, _COUNT),
    }[split]
    chosen = order[start:stop]
    return levels[chosen].float() / 16, digits[chosen]


def _ground(random: np.random.Generator, size: int) -> Tensor:
    """A coloured ground with slow and fast changes, float32 (3, size, size)."""
    slow = torch.from_numpy(random.uniform(0, 100, (1, 3, 4, 4))).float()
    fast = torch.from_numpy(random.normal(0, 8, (3, size, size))).float()
    return F.interpolate(slow, (size, size), mode="bilinear")[0] + fast


def _extent(inside: Tensor) -> tuple[int, int, int, int]:
    """Box x1, y1, x2, y2 around the true pixels of ``inside`` (H, W)."""
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(
    random: np.random.Generator,
    size: int,
    side: int,
    tight: tuple[int, int, int, int],
    boxes: list[tuple[int, int, int, int]],
) -> tuple[int, int] | None:
    """Top and left of a digit that hardly covers those that are there; None if none was found."""
    for _ in range(_TRIES):
        y, x = (int(value) for value in random.integers(0, size - side + 1, 2))
        box = _moved(tight, y, x)
        if all(_shared(box, other) <= _OVERLAP for other in boxes):
            return y, x
    return None


def _moved(box: tuple[int, int, int, int], y: int, x: int) -> tuple[int, int, int, int]:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Area that two boxes share, as a fraction of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)


@dataclass(frozen=True)
class SceneOptions:
    """What a data module of scenes can be asked for; sizes as in :class:`DigitScenes`."""

    train: int
    val: int
    test: int
    image_size: int
    digits: int
    seed: int

    def __post_init__(self) -> None:
        for name, key in (("train", "scenes"), ("val", "val_scenes"), ("test", "test_scenes"), ("digits", "digits")):
            options.integer(key, getattr(self, name), 1)
        options.integer("image_size", self.image_size, 24)
        options.integer("scene_seed", self.seed, 0)

    def render(self, split: str) -> list[Scene]:
        """All scenes of ``split``."""
        content = DigitScenes(
            split, getattr(self, split), image_size=self.image_size, digits=self.digits, seed=self.seed
        )
        return [content[index] for index in range(len(content))]
