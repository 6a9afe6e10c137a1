"""What the view of a detector shows its backbone is what torchvision's own transform makes of the images."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from slim.tasks.detector_view import _transformed


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (30, 90), (32, 32)])
def test_images_are_scaled_as_by_torchvision(height: int, width: int) -> None:
    """Shorter side to min_size, unless the longer one would pass max_size; padding aside."""
    transform = GeneralizedRCNNTransform(64, 96, [0.5] * 3, [0.25] * 3, size_divisible=1).eval()
    images = torch.rand(2, 3, height, width)
    theirs, _ = transform(list(images))
    ours = _transformed(images, transform)
    assert ours.shape == theirs.tensors.shape == (2, 3, *theirs.image_sizes[0])
    assert torch.allclose(ours, theirs.tensors, atol=0.1)
