"""Handwritten digits on an empty canvas: small data for both examples, inside scikit-learn, no download."""

from __future__ import annotations

import itertools

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def scenes(first: int, last: int, size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes with ``count`` digits each, that do not overlap.

    Args:
        first: The digits ``first`` to ``last`` of the data set are used once.
        last: Exclusive.
        size: Height and width of the canvas, pixels.
        count: Digits per scene.

    Returns:
        Images float (N, 1, size, size) in [0, 1], centres float (N, count, 2) in [0, 1] as x, y, classes int64
        (N, count).
    """
    bunch = load_digits()
    chance = np.random.default_rng(first)
    pictures = bunch.images[first:last].astype(np.float32) / 16
    pictures, labels = pictures.repeat(2, 1).repeat(2, 2), bunch.target[first:last]
    number = len(pictures) // count
    images = np.zeros((number, 1, size, size), np.float32)
    centres, classes = np.zeros((number, count, 2), np.float32), np.zeros((number, count), np.int64)
    places = [(x, y) for x in range(size // 16) for y in range(size // 16)]
    for scene in range(number):
        for index, place in enumerate(chance.permutation(len(places))[:count]):
            column, row = places[place]
            slack = (size - 16 * (size // 16)) // 2
            left, top = 16 * column + chance.integers(0, 2 * slack + 1), 16 * row + chance.integers(0, 2 * slack + 1)
            digit = scene * count + index
            images[scene, 0, top : top + 16, left : left + 16] = pictures[digit]
            centres[scene, index] = ((left + 8) / size, (top + 8) / size)
            classes[scene, index] = labels[digit]
    return torch.from_numpy(images), torch.from_numpy(centres), torch.from_numpy(classes)


class Scenes(pl.LightningDataModule):
    """Batches ``(images, centres, classes)``; see :func:`scenes`."""

    def __init__(self, size: int = 40, digits: int = 1, batch_size: int = 32, limit: int = 1797) -> None:
        super().__init__()
        self.size, self.digits, self.batch_size, self.limit = size, digits, batch_size, limit

    def setup(self, stage: str | None = None) -> None:
        """Make all three splits, of digits that no other split has."""
        marks = [0, int(0.7 * self.limit), int(0.85 * self.limit), self.limit]
        self.splits = [
            TensorDataset(*scenes(first, last, self.size, self.digits)) for first, last in itertools.pairwise(marks)
        ]

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return DataLoader(self.splits[0], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(self.splits[1], 64)

    def test_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(self.splits[2], 64)
