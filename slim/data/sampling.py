"""Sampling as a pure function of (seed, epoch): the order, crops and flips of an epoch need no state to resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

_ORDER, _AUGMENT, _SAMPLE, _CALIBRATE = 0, 1, 2, 3


class CropParams(NamedTuple):
    """Crop offsets and mirroring of every training image in one epoch."""

    down: torch.Tensor  # int64 (n,), 0 .. 2 * padding
    right: torch.Tensor  # int64 (n,), 0 .. 2 * padding
    mirror: torch.Tensor  # bool (n,)


def derive_seed(*key: int) -> int:
    """A 63-bit seed mixed from ``key``; neighbouring keys give unrelated seeds.

    >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of ``count`` images in ``epoch``: a permutation, int64 (count,)."""
    return torch.randperm(count, generator=_generator(seed, epoch, _ORDER))


def sample_crops(count: int, seed: int, epoch: int, *, padding: int, mirror: bool) -> CropParams:
    """Crops and flips of all ``count`` images in ``epoch``.

    They depend on the image, not on its place in a batch: batch size, workers and processes do not matter.
    """
    generator = _generator(seed, epoch, _AUGMENT)
    down = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    right = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    coin = torch.rand(count, generator=generator) < 0.5
    return CropParams(down, right, coin if mirror else torch.zeros_like(coin))


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Seed of one image in one epoch, for transforms that use the global generator."""
    return derive_seed(seed, epoch, _SAMPLE, position)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside, the global generator of the CPU draws from ``seed``; after it that goes on as if nothing had been drawn.

    Not ``torch.manual_seed``, which seeds the devices, too: in the process that trains they are the training's.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def calibration_seed(seed: int) -> int:
    """Seed of batches beside the training, so that they are not those of its epochs."""
    return derive_seed(seed, _CALIBRATE)


def _generator(seed: int, epoch: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, epoch, use))
