"""Crop, flip and normalize a whole batch of byte images at once, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from slim.data.sampling import CropParams


def crop_flip(images: torch.Tensor, crops: CropParams, padding: int) -> torch.Tensor:
    """Shift each image by its own crop offsets, black outside, then mirror it where ``crops.mirror`` is set.

    The same as ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip`` of torchvision per image, in one gather.

    Args:
        images: uint8 (B, C, H, W).
        crops: Entries (B,) of these images, on their device.
        padding: Pixels of black on every side.

    Returns:
        uint8 (B, C, H, W), new memory.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4) if padding else images
    across = torch.arange(width, device=images.device)
    rows = crops.down[:, None] + torch.arange(height, device=images.device)
    columns = crops.right[:, None] + torch.where(crops.mirror[:, None], width - 1 - across, across)
    # One flat pixel index per image serves all its channels.
    index = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(batch, 1, -1)
    flat = padded.reshape(batch, channels, -1).gather(2, index.expand(-1, channels, -1))
    return flat.view(batch, channels, height, width)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Scale byte images (B, C, H, W) to ``size`` x ``size``, bilinear with antialiasing; the same if they have it."""
    if tuple(images.shape[-2:]) == (size, size):
        return images
    scaled = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


class Normalize:
    """Bytes to floats: ``(image / 255 - mean) / std`` per channel, as one multiplication and one addition."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        centre = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        spread = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        self._scale = (1 / (255 * spread)).float().to(device)
        self._shift = (-centre / spread).float().to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, H, W)."""
        return images.float().mul_(self._scale).add_(self._shift)
