"""The images of the experiment, decoded once into uint8 tensors, and the augmentation, one batched operation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
TRAIN_IMAGES = 15_000
HELD_OUT = 10_000  # of the training folder's other images: what hyperparameters are chosen on


@dataclass
class Images:
    """Images ``(N, H, W, 3)`` uint8 and labels ``(N,)`` int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, which: slice) -> Images:
        return Images(self.x[which], self.y[which])


def load(root: Path, cache: Path) -> tuple[Images, Images]:
    """15,000 training images (randperm, seed 0, of the sorted list) and all test images of an ImageFolder tree."""
    stored = cache / "images.pt"
    if not stored.exists():
        files = sorted(root.glob("train/*/*"))
        chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:TRAIN_IMAGES]
        cache.mkdir(parents=True, exist_ok=True)
        train, test = [files[int(i)] for i in chosen], sorted(root.glob("test/*/*"))
        torch.save({"train": decode(train), "test": decode(test)}, stored)
    saved = torch.load(stored)
    return Images(*saved["train"]), Images(*saved["test"])


def held_out(root: Path, cache: Path) -> Images:
    """The validation images: the next of the same random order, neither trained on nor in the test folder."""
    stored = cache / "held_out.pt"
    if not stored.exists():
        files = sorted(root.glob("train/*/*"))
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
        torch.save(decode([files[int(i)] for i in order[TRAIN_IMAGES : TRAIN_IMAGES + HELD_OUT]]), stored)
    return Images(*torch.load(stored))


def decode(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Read JPEGs; the label is the place of the folder among the sorted folders."""
    classes = sorted({f.parent.name for f in files})
    x = torch.from_numpy(np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]))
    return x, torch.tensor([classes.index(f.parent.name) for f in files])


def normalize(x: Tensor) -> Tensor:
    """Uint8 ``(B, H, W, 3)`` to float ``(B, 3, H, W)`` in channels_last memory."""
    return ((x.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


class Batches:
    """Shuffled, cropped (padding 4) and flipped batches; the order follows the seed alone."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        padding = (0, 0, 4, 4, 4, 4)
        self.padded, self.y, self.size = torch.nn.functional.pad(images.x, padding), images.y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.y) // self.size)

    def __iter__(self):
        """One epoch of ``(x, y)``."""
        reach = torch.arange(32)
        for index in torch.randperm(len(self.y), generator=self.generator).split(self.size):
            n = len(index)
            top, left = torch.randint(0, 9, (2, n), generator=self.generator)
            flip = torch.rand(n, generator=self.generator) < 0.5
            columns = torch.where(flip[:, None], 31 - reach, reach) + left[:, None]
            rows = reach + top[:, None]
            yield normalize(self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]), self.y[index]
