"""Training batches for calibration: same images and augmentation as training, with a random stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any


class CalibrationBatches:
    """``count`` training batches ``(images float32 (B, C, H, W), labels int64 (B,))``, the same in every iteration.

    Read one at a time, over as many epochs as it takes. Every iteration has a loader of its own, so that no loader
    that trains moves and no global generator is drawn from.

    Args:
        loader: Makes the loader, at its first batch, whose batches these are.
        count: Batches.
    """

    def __init__(self, loader: Callable[[], Any], count: int) -> None:
        self._loader, self._count = loader, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        loader, left = self._loader(), self._count
        while left > 0:
            taken = min(left, len(loader))
            yield from islice(loader, taken)
            left -= taken
