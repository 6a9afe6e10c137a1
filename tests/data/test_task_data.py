"""Pictures with masks or boxes: batches follow from seed and epoch, whatever loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slim.data import CocoDetectionData, SegmentationFolder
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


@pytest.mark.parametrize("value", [257, 65535])
def test_a_mask_of_more_than_a_byte_is_refused(masked: Path, value: int) -> None:
    """257 was class 1."""
    for path in (masked / "masks").iterdir():
        Image.fromarray(np.full((12, 14), value, dtype=np.uint16)).save(path)
    with pytest.raises(SlimError, match=f"values from {value} to {value}"):
        list(folder(masked).train_dataloader())


def test_a_foreground_of_255_is_refused(masked: Path) -> None:
    """255 counts nowhere: the network would learn nothing but background."""
    for path in (masked / "masks").iterdir():
        Image.fromarray(np.tile(np.array([0, 255], np.uint8), (12, 7))).save(path)
    with pytest.raises(SlimError, match="Got no class 1 beside 255"):
        folder(masked, num_classes=2).train_dataloader()
    Image.fromarray(np.ones((12, 14), np.uint8)).save(masked / "masks" / "1.png")
    assert len(folder(masked, num_classes=2).train_dataloader())


def test_what_test_pictures_lack_is_told_before_the_training(masked: Path) -> None:
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            shutil.copytree(masked / kind, masked / part / kind)
    (masked / "test" / "masks" / "3.png").unlink()
    with pytest.raises(SlimError, match=r"Got none for 3\.png \(data\.dir=.*test\)"):
        folder(masked).setup("fit")


def test_hidden_pictures_are_none(masked: Path) -> None:
    (masked / "images" / "._1.png").write_bytes(b"of another system")
    assert sum(folder(masked).counts.values()) == 8


@pytest.mark.parametrize("augment", [None, "crop"])
def test_augmentation_is_never_left_out_without_a_word(masked: Path, augment: Any) -> None:
    with pytest.raises(SlimError, match="augment must be true or false"):
        folder(masked, augment=augment)


def test_no_mask_tells_300_classes_apart(masked: Path) -> None:
    with pytest.raises(SlimError, match="at most 255 classes"):
        folder(masked, num_classes=300)


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Four pictures, and a place for boxes."""
    (tmp_path / "boxed").mkdir()
    for index in range(4):
        Image.new("RGB", (60, 40)).save(tmp_path / "boxed" / f"{index}.png")
    return tmp_path / "boxed"


def coco(place: Path, *boxes: list[float], names: tuple[str, ...] = ("0.png", "1.png"), **options: Any) -> Any:
    """Data of pictures ``names`` with ``boxes`` on the first."""
    annotations = [{"image_id": 0, "bbox": box, "category_id": 7} for box in boxes]
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    content = {"images": images, "categories": [{"id": 7, "name": "cat"}], "annotations": annotations}
    for part in ("train", "test"):
        (place / f"{part}.json").write_text(json.dumps(content | options.pop("content", {})))
    files = {"train_images": ".", "train_boxes": "train.json", "test_images": ".", "test_boxes": "test.json"}
    return CocoDetectionData(**{"dir": str(place), "batch_size": 1, "image_size": 20, **files, **options})


def test_boxes_end_where_the_picture_ends(boxed: Path) -> None:
    """In evaluation as in training: a box outside of it could never be found."""
    data = coco(boxed, [-10, -10, 40, 30], [50, 30, 30, 30], [70, 50, 5, 5])
    ((_, (target, _)),) = data.test_dataloader()
    assert target["boxes"].tolist() == [[0, 0, 10, 10], [pytest.approx(50 / 3), 15, 20, 20]]
    assert target["labels"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("boxes", "options", "says"),
    [
        ([[0, 0, float("nan"), 5]], {}, "a box of"),
        (
            [],
            {"content": {"categories": [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}]}},
            "categories that share",
        ),
        (
            [],
            {"content": {"images": [{"id": 0, "file_name": f"{index}.png"} for index in (0, 1)]}},
            "images that share",
        ),
        ([], {"names": ("0.png", "gone.png")}, "gone.png .1 of 2.. Set data.train_images"),
        ([], {"val_images": "."}, "belong together"),
    ],
)
def test_boxes_that_cannot_be_meant(boxed: Path, boxes: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SlimError, match=says):
        coco(boxed, *boxes, **options).setup("fit")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"categories": [{"id": 7, "name": "dog"}]}, "same categories. Got others in .*test.json"),
        ({"images": [], "annotations": []}, "needs pictures. Got none in .*test.json. Set data.test_boxes"),
        ({"images": [{"id": 0, "file_name": "gone.png"}]}, "gone.png .1 of 1.. Set data.test_images"),
        ("no JSON", "JSON file in COCO's format"),
    ],
)
def test_what_test_boxes_lack_is_told_before_the_training(boxed: Path, content: Any, says: str) -> None:
    data = coco(boxed, [0, 0, 5, 5])
    path = boxed / "test.json"
    whole = json.loads(path.read_text())
    path.write_text(content if isinstance(content, str) else json.dumps(whole | content))
    with pytest.raises(SlimError, match=says):
        data.setup("fit")


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), ("40", 60.0), (None, 0)])
def test_boxes_of_another_size_or_of_a_picture_that_lies_are_refused(boxed: Path, width: Any, height: Any) -> None:
    """The picture lies: 60 x 40, and upright 40 x 60."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    Image.new("RGB", (60, 40)).save(boxed / "0.png", exif=orientation)
    images = [{"id": 0, "file_name": "0.png", "width": width, "height": height}]
    data = coco(boxed, [0, 0, 5, 5], content={"images": images})
    (boxed / "test.json").write_text((boxed / "train.json").read_text())
    if width == 60:
        with pytest.raises(SlimError, match=r"Got 60x40 in the JSON file for 40x60 \(.*0\.png\)"):
            list(data.test_dataloader())
    else:
        assert len(list(data.test_dataloader())) == 1
