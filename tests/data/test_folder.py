"""A user's own images: layouts, memory and streaming, splits, kinds of files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from slim.data import BatchLoader, ImageFolderData
from slim.data.decode import read_image
from slim.data.listing import class_folders, listing
from slim.data.splits import permutation
from slim.errors import SlimError
from tests.data.folders import MakeFolder, data, same

# Python 3.12 and newer warn when a process with threads forks, which is how PyTorch starts its workers.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_classes_sizes_and_counts_are_inferred(make_folder: MakeFolder) -> None:
    one = data(make_folder(classes=("a", "b", "c")), val_fraction=0.25)
    assert (one.num_classes, one.in_channels, one.image_size, one.class_names) == (3, 3, 16, ("a", "b", "c"))
    assert one.counts == {"train": 27, "val": 9}
    one.setup("test")
    assert one.counts["test"] == 36
    images, labels = next(iter(one.train_dataloader()))
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert labels.shape == (4,) and labels.dtype == torch.int64
    assert "\n" not in one.describe() and "in memory" in one.describe()


def test_the_test_images_are_not_read_before_they_are_asked_for(make_folder: MakeFolder) -> None:
    folder = make_folder()
    one = data(folder)
    one.setup()
    list(one.train_dataloader()), list(one.val_dataloader())
    for file in (folder / "test").rglob("*.png"):
        file.write_bytes(b"broken")
    list(one.train_dataloader())
    with pytest.raises(SlimError, match="test"):
        one.test_dataloader()


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_memory(make_folder: MakeFolder, augment: bool, workers: int) -> None:
    folder = make_folder(size=(20, 24))
    memory = data(folder, augment=augment)
    stream = data(folder, augment=augment, memory_budget_gb=0, num_workers=workers)
    assert "streamed" in stream.describe() and memory.mean == stream.mean and memory.std == stream.std
    one, other = memory.train_dataloader(), stream.train_dataloader()
    for _ in range(2):
        assert same(list(one), list(other))
    assert same(list(memory.val_dataloader()), list(stream.val_dataloader()))
    assert same(list(memory.test_dataloader()), list(stream.test_dataloader()))


def test_zoom_is_the_same_with_any_number_of_workers(make_folder: MakeFolder) -> None:
    folder = make_folder(size=(20, 24))
    none, two = (data(folder, augment="zoom", num_workers=workers) for workers in (0, 2))
    before = torch.get_rng_state()
    one, other = none.train_dataloader(), two.train_dataloader()
    first, second = list(one), list(one)
    assert same(first, list(other)) and same(second, list(other))
    assert not same(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    other.set_position(1, 2)
    assert same(list(other), second[2:])


def test_the_choice_is_said_aloud(make_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder()
    with caplog.at_level(logging.INFO, "slim"):
        data(folder).setup()
        assert "in memory" in caplog.text
        data(folder, memory_budget_gb=0).setup()
        assert "streamed" in caplog.text and "data.memory_budget_gb" in caplog.text


def test_limit_train_is_the_front_of_the_fixed_shuffle(make_folder: MakeFolder) -> None:
    folder = make_folder(count=20)
    files = listing(folder / "train", class_folders(folder / "train"))
    assert list(files.files) == sorted(files.files)
    index = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:10]
    expected = torch.stack([read_image(folder / "train" / files.files[i], 3) for i in index.tolist()])
    for budget in (4.0, 0.0):
        one = data(folder, limit_train=10, augment=False, memory_budget_gb=budget)
        source, train, _, val = one._open_fit()
        (images,) = source.fetch([train], torch.device("cpu"), 0, 0, False)
        assert torch.equal(images, expected) and torch.equal(source.labels[train], files.labels[index])
        assert len(val) == 1


def test_limit_test_takes_every_class(make_folder: MakeFolder) -> None:
    one = data(make_folder(count=30), limit_test=20)
    labels = torch.cat([y for _, y in one.test_dataloader()])
    assert len(labels) == 20 and set(labels.tolist()) == {0, 1}


@pytest.mark.parametrize("part", ["", "train"])
def test_one_folder_is_split_once_for_all_seeds(make_folder: MakeFolder, part: str) -> None:
    """And says so: nobody asked for a test set."""
    folder = make_folder(parts=(part,), count=20)
    one, other = data(folder, seed=0), data(folder, seed=1)
    assert one.counts == {"train": 29, "val": 3}
    assert same(list(one.test_dataloader()), list(other.test_dataloader()))
    assert same(list(one.val_dataloader()), list(other.val_dataloader()))
    parts = [one.dataset._list("train").files, one.dataset._list("test").files]  # type: ignore[attr-defined]
    assert [len(files) for files in parts] == [32, 8] and not set(parts[0]) & set(parts[1])
    assert "a fixed fifth of all images is the test set" in one.describe()
    assert "fifth" not in data(make_folder(name="both")).describe()


def test_val_folder_stands_in_for_test_or_validates(make_folder: MakeFolder) -> None:
    stands_in = data(make_folder(parts=("train", "val"), name="two"), val_fraction=0.25)
    assert stands_in.counts == {"train": 18, "val": 6} and len(stands_in.test_dataloader().index) == 24
    validates = data(make_folder(parts=("train", "val", "test"), name="three"))
    assert validates.counts == {"train": 24, "val": 24}
    assert data(make_folder(parts=("train", "valid", "test"), name="valid")).counts == {"train": 24, "val": 24}
    with pytest.raises(SlimError, match="Got val, validation"):
        data(make_folder(parts=("train", "val", "validation"), name="four"))


def test_grey_and_scaled_images(make_folder: MakeFolder) -> None:
    one = data(make_folder(size=(40, 30), suffix="jpg"), in_channels=1, image_size=8)
    images, _ = next(iter(one.train_dataloader()))
    assert images.shape == (4, 1, 8, 8) and len(one.mean) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "ppm", "tif"])
def test_kinds_of_files_agree_with_pillow(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(read_image(path, 3).permute(1, 2, 0).numpy(), expected)
    assert read_image(path, 1).shape == (1, 9, 7)


def test_odd_pictures_are_read(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16))
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        deep.save(tmp_path / name)
        assert (read_image(tmp_path / name, 3) == 100).all()
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "real.tif")
    with pytest.raises(SlimError, match="32 bits"):
        read_image(tmp_path / "real.tif", 3)
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    assert read_image(tmp_path / "print.jpg", 3).shape == (3, 4, 4)
    Image.new("RGBA", (4, 4), (9, 8, 7, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", 3)[:, 0, 0].tolist() == [9, 8, 7]
    turned = Image.new("RGB", (4, 2))
    turned.save(tmp_path / "turned.jpg", exif=_turned(turned))
    assert read_image(tmp_path / "turned.jpg", 3).shape == (3, 4, 2)


def _turned(picture: Image.Image) -> Image.Exif:
    exif = picture.getexif()
    exif[0x0112] = 6
    return exif


def test_hidden_files_and_strangers_are_ignored(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "train" / "cat" / ".hidden.png").write_text("no image")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / ".thumbnails").mkdir()
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    (folder / "train" / "cat" / "more").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "train" / "cat" / "more" / "a.PNG")
    assert sum(data(folder).counts.values()) == 25


def test_plain_batches_are_training_images_always_the_same(make_folder: MakeFolder) -> None:
    one = data(make_folder(), eval_batch_size=4)
    first = one.plain_batches(2)
    list(one.train_dataloader())
    assert len(first) == 2 and same(first, one.plain_batches(2))
    assert len(one.plain_batches(99)) == 6
    source, train, _, _ = one._open_fit()
    assert torch.equal(torch.cat([y for _, y in first]), source.labels[train[permutation(len(train))]][:8])


@pytest.mark.parametrize("options", [{}, {"memory_budget_gb": 0, "augment": "zoom"}])
def test_calibration_is_the_training_distribution_beside_the_training(
    make_folder: MakeFolder, options: dict[str, Any]
) -> None:
    folder = make_folder()
    one = data(folder, batch_size=5, padding=3, **options)
    training = one.train_dataloader()
    running = iter(training)
    next(running)
    place, state = training.state_dict(), torch.get_rng_state()
    found = one.calibration_batches(9)
    batches = list(found)
    # More batches than an epoch has, each drawn anew, all of training images.
    assert len(found) == len(batches) == 9 and {len(x) for x, _ in batches} == {5}
    assert same(batches, list(found)) and same(batches[:2], list(one.calibration_batches(2)))
    assert training.state_dict() == place and torch.equal(torch.get_rng_state(), state)
    assert len({x.sum().item() for x, _ in batches}) == 9
    epochs = [x for epoch in range(3) for x, _ in at(one, epoch)]
    assert not any(torch.equal(x, y) for x, _ in batches for y in epochs)
    other = data(folder, batch_size=5, padding=3, seed=1, **options)
    assert not same(batches, list(other.calibration_batches(9)))


def at(one: ImageFolderData, epoch: int) -> BatchLoader:
    loader = one.train_dataloader()
    loader.set_position(epoch, 0)
    return loader
