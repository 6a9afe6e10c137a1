"""Pictures with masks or boxes: batches follow from seed and epoch, whatever loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slim.data import SegmentationFolder
from slim.errors import SlimError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Ten pictures with masks of three classes, and pixels that do not count."""
    chance = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "masked" / kind).mkdir(parents=True)
    for index in range(10):
        pixels = chance.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "masked" / "images" / f"{index}.png")
        classes = chance.choice([0, 1, 2, 255], (12, 14)).astype(np.uint8)
        Image.fromarray(classes).save(tmp_path / "masked" / "masks" / f"{index}.png")
    return tmp_path / "masked"


def folder(place: Path, **options: Any) -> SegmentationFolder:
    return SegmentationFolder(**{"dir": str(place), "num_classes": 3, "image_size": 8, "batch_size": 3, **options})


def epoch(data: SegmentationFolder, number: int) -> torch.Tensor:
    """The images of an epoch, in an arbitrary state of the global generator."""
    torch.randn(number + 1)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return torch.cat([images for images, _ in loader])


def test_workers_and_what_was_drawn_before_change_no_batch(masked: Path) -> None:
    state = torch.get_rng_state()
    first, second = (epoch(folder(masked), number) for number in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(epoch(folder(masked, num_workers=2), 1), second)
    torch.set_rng_state(state)
    list(folder(masked).train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_calibration_is_the_same_in_every_iteration(masked: Path) -> None:
    batches = folder(masked).calibration_batches(5, "cpu")
    once, again = ([images for images, _ in batches] for _ in range(2))
    assert len(once) == 5 and all(map(torch.equal, once, again))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_one_line(masked: Path, workers: int) -> None:
    for path in (masked / "images").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(SlimError, match=r"^every picture must be readable\. Got .*\.png.*Replace it\.$") as caught:
        list(folder(masked, num_workers=workers).train_dataloader())
    assert "Traceback" not in str(caught.value)
