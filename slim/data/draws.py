"""Randomness as a pure function of (seed, epoch): order, crops and flips need no state to resume."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

_ORDER, _AUGMENT, _SAMPLE, _CALIBRATE = 0, 1, 2, 3


class Draws(NamedTuple):
    """Where each image of one epoch is cropped and whether it is mirrored; one entry per training image."""

    down: torch.Tensor  # int64 (n,), 0 .. 2 * padding
    right: torch.Tensor  # int64 (n,), 0 .. 2 * padding
    mirror: torch.Tensor  # bool (n,)


def seed_of(*key: int) -> int:
    """A 63-bit seed mixed from ``key``; neighbours share nothing.

    >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def shuffled(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of ``count`` images in ``epoch``: a permutation, int64 (count,)."""
    return torch.randperm(count, generator=_generator(seed, epoch, _ORDER))


def drawn(count: int, seed: int, epoch: int, *, padding: int, mirror: bool) -> Draws:
    """Crops and flips of all ``count`` images in ``epoch``.

    They belong to the image, not to its place in a batch: batch size, workers and processes change nothing.
    """
    generator = _generator(seed, epoch, _AUGMENT)
    down = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    right = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    coin = torch.rand(count, generator=generator) < 0.5
    return Draws(down, right, coin if mirror else torch.zeros_like(coin))


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Seed of one image in one epoch, for transforms that draw by themselves."""
    return seed_of(seed, epoch, _SAMPLE, position)


def calibration_seed(seed: int) -> int:
    """Seed of batches beside the training, so that they are not those of its epochs."""
    return seed_of(seed, _CALIBRATE)


def _generator(seed: int, epoch: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, epoch, use))
