"""Photographs with masks or boxes: read, augmented together, brought to one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Reader = Callable[[int], tuple[Tensor, Any]]
"""From a position to an image, uint8 (C, H, W), and its target: a mask uint8 (H, W), or ``boxes`` and ``labels``."""

_SMALLEST_CROP = 0.4  # of a picture's area, in training
_SMALLEST_BOX = 2  # pixels


class Pictures(Dataset[Any]):
    """Samples ``(image uint8 (C, size, size), target)``.

    Args:
        count: Number of pictures.
        read: Reads one of them.
        size: Height and width.
        augment: Cut out a random part and mirror half of the pictures, target included.
        finish: Applied to the image and the target last.
    """

    def __init__(
        self,
        count: int,
        read: Reader,
        size: int,
        augment: bool,
        finish: Callable[[Tensor, Any], tuple[Tensor, Any]] | None = None,
    ) -> None:
        self.count, self.read, self.finish = count, read, finish
        self._transform = _transform(size, augment)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> Any:
        image, target = self.read(position)
        image, target = self._together(image, target)
        return (image, target) if self.finish is None else self.finish(image, target)

    def _together(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        from torchvision import tv_tensors

        picture = tv_tensors.Image(image)
        if isinstance(target, Tensor):
            picture, mask = self._transform(picture, tv_tensors.Mask(target))
            return picture.as_subclass(Tensor), mask.as_subclass(Tensor)
        height, width = image.shape[-2:]
        target = _inside(target, height, width)
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
        picture, content = self._transform(picture, {**target, "boxes": boxes})
        return picture.as_subclass(Tensor), {**content, "boxes": content["boxes"].as_subclass(Tensor).float()}


def _inside(target: Any, height: int, width: int) -> Any:
    """The parts of boxes that are on the picture."""
    boxes = target["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    there = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {"boxes": boxes[there], "labels": target["labels"][there]}


def _transform(size: int, augment: bool) -> Any:
    from torchvision.transforms import v2

    if not augment:
        return v2.Resize((size, size), antialias=True)
    return v2.Compose(
        [
            v2.RandomResizedCrop((size, size), scale=(_SMALLEST_CROP, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            _Sanitize(),
        ]
    )


class _Sanitize(torch.nn.Module):
    """Drop boxes of which a crop left next to nothing; masks pass."""

    def forward(self, image: Any, target: Any) -> tuple[Any, Any]:
        """Image and target as they came, without boxes below a size."""
        if isinstance(target, dict):
            from torchvision.transforms import v2

            image, target = v2.SanitizeBoundingBoxes(min_size=_SMALLEST_BOX)(v2.ClampBoundingBoxes()(image, target))
        return image, target


def picture_of(content: Any) -> Tensor:
    """A Pillow image in colour as uint8 (3, H, W)."""
    from torchvision.transforms.v2 import functional

    return functional.pil_to_tensor(content.convert("RGB"))  # type: ignore[no-any-return]


def mask_of(content: Any) -> Tensor:
    """A Pillow image of classes, grey or with a palette, as uint8 (H, W).

    Raises:
        ValueError: a class that is no byte.
    """
    import numpy as np

    values = np.array(content)
    if values.size and not 0 <= values.min() <= values.max() <= 255:
        raise ValueError(f"a mask with values from {values.min()} to {values.max()}, where 0 to 255 can be")
    return torch.from_numpy(values.astype(np.uint8))
