"""Images held in memory as one byte tensor on the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch

log = logging.getLogger(__name__)

# The rest is left to the network and its activations.
_DEVICE_SHARE = 0.5


class MemorySource:
    """Decoded images in one tensor.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images.contiguous(), labels.to(torch.int64)
        self._moved: dict[torch.device, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> str:
        """Where the images are, in words."""
        return f"in memory ({self.images.nbytes / 1e6:,.1f} MB)"

    def fetch(
        self, batches: Sequence[torch.Tensor], device: torch.device, seed: int, epoch: int, train: bool
    ) -> Iterator[torch.Tensor]:
        """The images of each batch of positions, uint8 (B, C, H, W) on ``device``."""
        images = self._on(device)
        for batch in batches:
            yield images[batch.to(images.device)].to(device, non_blocking=True)

    def _on(self, device: torch.device) -> torch.Tensor:
        if device.type == "cpu":
            return self.images
        if device not in self._moved:
            self._moved[device] = self.images.to(device) if self._fits(device) else self.images
        return self._moved[device]

    def _fits(self, device: torch.device) -> bool:
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        if self.images.nbytes <= free * _DEVICE_SHARE:
            return True
        log.info(
            "images stay in host memory: %.1f GB, %.1f GB free on %s", self.images.nbytes / 1e9, free / 1e9, device
        )
        return False
