"""The images, decoded once: a part of CIFAR-10 (JPEG) to train on, a part held out, and the whole test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from slim.errors import SlimError

MEAN = torch.tensor((0.4914, 0.4822, 0.4465))
STD = torch.tensor((0.2470, 0.2435, 0.2616))


@dataclass
class Images:
    """Pixels (N, 32, 32, 3) uint8 and labels (N,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def part(self, start: int, stop: int) -> Images:
        """Images ``start`` to ``stop``."""
        return Images(self.x[start:stop], self.y[start:stop])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Normalized batches in order, (B, 3, 32, 32) and (B,)."""
        return [(normalized(x), y) for x, y in zip(self.x.split(size), self.y.split(size), strict=True)]


def load(root: Path, cache: Path, train: int, held_out: int, test: int) -> tuple[Images, Images, Images]:
    """(train, held out, test): the first two from a fixed permutation of the sorted training files."""
    stored = cache / f"images-{train}-{held_out}-{test}.pt"
    if not stored.exists():
        files = sorted(root.glob("train/*/*"))
        tests = sorted(root.glob("test/*/*"))
        if len(files) < train + held_out or not tests:
            raise SlimError(
                f"--data must be an ImageFolder tree of 32x32 images. Got {root} with {len(files)} training images."
                " Give the folder that holds train/<class>/ and test/<class>/."
            )
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[: train + held_out].tolist()
        some = torch.randperm(len(tests), generator=torch.Generator().manual_seed(0))[:test].tolist()
        cache.mkdir(parents=True, exist_ok=True)
        torch.save([*decoded([files[i] for i in order]), *decoded([tests[i] for i in some])], stored)
    x, y, test_x, test_y = torch.load(stored)
    every = Images(x, y)
    return every.part(0, train), every.part(train, train + held_out), Images(test_x, test_y)


def decoded(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Read the files; the label is the place of a file's folder among the sorted folders."""
    classes = sorted(p.name for p in files[0].parents[1].iterdir() if p.is_dir())
    pixels = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    return torch.from_numpy(pixels), torch.tensor([classes.index(f.parent.name) for f in files])


def normalized(x: Tensor) -> Tensor:
    """(B, 32, 32, 3) uint8 to (B, 3, 32, 32) float, channels last in memory."""
    return ((x.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def augmented(images: Images, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches: cropped from a border of 4, flipped, normalized."""
    padded = F.pad(images.x, (0, 0, 4, 4, 4, 4))
    reach = torch.arange(32)
    for index in torch.randperm(len(images), generator=generator).split(size):
        top, left = torch.randint(0, 9, (2, len(index), 1), generator=generator)
        flip = torch.rand(len(index), 1, generator=generator) < 0.5
        rows = (top + reach)[:, :, None]
        columns = (left + torch.where(flip, 31 - reach, reach))[:, None, :]
        yield normalized(padded[index[:, None, None], rows, columns]), images.y[index]
