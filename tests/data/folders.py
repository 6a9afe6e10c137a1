"""What tests of a user's own images share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slim.data import ImageFolderData

MakeFolder = Callable[..., Path]
Batch = tuple[torch.Tensor, torch.Tensor]


def data(folder: Path, **options: Any) -> ImageFolderData:
    return ImageFolderData(dir=str(folder), **{"image_size": 16, "batch_size": 4, "num_workers": 0, **options})


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True)
    )
