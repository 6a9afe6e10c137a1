"""The batched crop, flip and normalization are torchvision's, image by image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as V

from slim.data.augment import Normalize, crop_flip, resize
from slim.data.sampling import CropParams, epoch_order, sample_crops, sample_seed


@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    mirror=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_crop_flip_is_torchvisions(
    batch: int, channels: int, height: int, width: int, padding: int, mirror: bool, seed: int
) -> None:
    images = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)
    before = images.clone()
    crops = sample_crops(batch, seed, 0, padding=padding, mirror=mirror)
    found = crop_flip(images, crops, padding)
    for at in range(batch):
        expected = V.crop(V.pad(images[at], [padding]), int(crops.down[at]), int(crops.right[at]), height, width)
        expected = V.horizontal_flip(expected) if crops.mirror[at] else expected
        assert torch.equal(found[at], expected)
    assert torch.equal(images, before)


def test_normalize_is_torchvisions() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.49, 0.48, 0.45), (0.24, 0.25, 0.26)
    expected = V.normalize(V.to_dtype(images, torch.float32, scale=True), list(mean), list(std))
    torch.testing.assert_close(Normalize(mean, std, torch.device("cpu"))(images), expected, atol=2e-6, rtol=0)


def test_resized_is_torchvisions_and_keeps_what_fits() -> None:
    images = torch.randint(0, 256, (4, 3, 10, 10), dtype=torch.uint8)
    assert resize(images, 10) is images
    expected = V.resize(images.float(), [7, 7], antialias=True).round().to(torch.uint8)
    assert torch.equal(resize(images, 7), expected)


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = sample_crops(100, 0, 3, padding=4, mirror=True)
    torch.manual_seed(2)
    again = sample_crops(100, 0, 3, padding=4, mirror=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (sample_crops(100, 1, 3, padding=4, mirror=True), sample_crops(100, 0, 4, padding=4, mirror=True)):
        assert not torch.equal(first.down, other.down) and not torch.equal(first.mirror, other.mirror)
    assert not torch.equal(epoch_order(100, 0, 3), epoch_order(100, 0, 4))
    assert torch.equal(epoch_order(100, 0, 3).sort().values, torch.arange(100))
    assert sample_seed(0, 0, 1) != sample_seed(0, 1, 0)


def test_draws_are_uniform() -> None:
    crops = sample_crops(90_000, 7, 0, padding=4, mirror=True)
    for part in (crops.down, crops.right):
        assert torch.bincount(part, minlength=9).sub(10_000).abs().max() < 500
    assert abs(float(crops.mirror.float().mean()) - 0.5) < 0.01
    assert not sample_crops(100, 7, 0, padding=4, mirror=False).mirror.any()


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    epoch_order(10, 0, 0)
    sample_crops(10, 0, 0, padding=1, mirror=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shift", [0, 2])
def test_no_draw_is_the_middle(shift: int) -> None:
    images = torch.randint(1, 256, (2, 3, 6, 6), dtype=torch.uint8)
    centre = torch.full((2,), shift)
    assert torch.equal(crop_flip(images, CropParams(centre, centre, torch.zeros(2, dtype=torch.bool)), shift), images)
