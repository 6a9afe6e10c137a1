"""Digits from the wheel, and torchvision's sets with and without a network; no test needs one."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slim.data import (
    CIFAR10Data,
    CIFAR100Data,
    DigitsData,
    FashionMNISTData,
    ImageData,
    MNISTData,
    SegmentationDigits,
    SVHNData,
)
from slim.errors import SlimError


def test_digits_are_whole_and_disjoint() -> None:
    one = DigitsData(val_fraction=0.2)
    one.setup("test")
    assert one.counts == {"train": 1150, "val": 287, "test": 360}
    assert (one.num_classes, one.in_channels, one.image_size) == (10, 1, 32)
    loaders = (one.train_dataloader(), one.val_dataloader(), one.test_dataloader())
    labels = [torch.cat([y for _, y in loader]) for loader in loaders]
    assert all(set(part.tolist()) == set(range(10)) for part in labels)
    images = {image.numpy().tobytes() for part in loaders for image in part.source.images[part.index]}
    # A few of the 1,797 scans are pixel for pixel the same.
    assert len(images) > 1790


def test_digits_are_normalized_and_never_mirrored() -> None:
    one = DigitsData(augment=False, val_fraction=0.0)
    assert one.val_dataloader() == []
    images = torch.cat([x for x, _ in one.train_dataloader()])
    assert abs(float(images.mean())) < 0.01 and abs(float(images.std()) - 1) < 0.01
    assert not one.mirror and one.padding == 2


def test_setup_is_idempotent_and_the_seed_moves_only_the_order() -> None:
    one, other = DigitsData(seed=0), DigitsData(seed=1)
    one.setup("fit")
    before = one._fit
    one.setup()
    one.setup("validate")
    assert one._fit is before
    for a, b in zip(one.val_dataloader(), other.val_dataloader(), strict=True):
        assert torch.equal(a[0], b[0])
    assert not torch.equal(next(iter(one.train_dataloader()))[1], next(iter(other.train_dataloader()))[1])


@pytest.mark.parametrize("kind", [MNISTData, FashionMNISTData, CIFAR10Data, CIFAR100Data, SVHNData])
def test_an_unreachable_download_is_one_line_and_leaves_no_trace(
    kind: Callable[..., ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    root = tmp_path / "deep" / "root"
    with pytest.raises(SlimError) as caught:
        kind(root=str(root)).setup()
    text = str(caught.value)
    assert str(root) in text and "data=digits" in text and "\n" not in text
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
    with pytest.raises(SlimError, match="data=digits"):
        kind(root=str(root), download=False).setup()


def test_both_splits_are_fetched_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning prepares data in one process alone; the others open what is there."""
    calls = []

    class Fetched:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            calls.append((train, download))
            if not download:
                raise RuntimeError("Dataset not found")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fetched)
    CIFAR10Data(root=str(tmp_path)).prepare_data()
    assert calls == [(True, False), (True, True), (False, True)]
    with pytest.raises(SlimError, match="data=digits"):
        CIFAR10Data(root=str(tmp_path), download=False).prepare_data()


def test_a_missing_file_of_test_images_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half:
        def __init__(self, root: str, *, split: str, download: bool) -> None:
            if split == "test":
                raise RuntimeError("Dataset not found")

    monkeypatch.setattr("torchvision.datasets.SVHN", Half)
    with pytest.raises(SlimError, match=r"test_32x32\.mat"):
        SVHNData(root=str(tmp_path), download=False).prepare_data()


def test_pictures_with_masks_are_normalized_as_told() -> None:
    """A mean may be nought or negative; a deviation may not."""
    options = {"scenes": 2, "val_scenes": 1, "test_scenes": 1, "image_size": 24, "batch_size": 1, "num_workers": 0}
    parts = []
    for mean in ((0.0, 0.0, 0.0), (-1.0, 0.0, 0.0)):
        one = SegmentationDigits(mean=mean, std=(1.0, 1.0, 1.0), **options)
        one.setup("test")
        (image, _), *_ = one.test_dataloader()
        parts.append(image[0])
    assert torch.allclose(parts[1][0], parts[0][0] + 1) and torch.equal(parts[1][1:], parts[0][1:])
    assert float(parts[0].min()) >= 0 and float(parts[0].max()) <= 1
    with pytest.raises(SlimError, match="std"):
        SegmentationDigits(std=(1.0, 0.0, 1.0), **options)


@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_validation_scenes_are_left_where_nothing_is_to_be_held_out(val_fraction: float) -> None:
    options = {"scenes": 4, "val_scenes": 2, "test_scenes": 1, "image_size": 24, "batch_size": 1, "num_workers": 0}
    one = SegmentationDigits(val_fraction=val_fraction, **options)
    one.setup("fit")
    assert sum(len(images) for images, _ in one.val_dataloader()) == (2 if val_fraction else 0)
    assert len(one._sets["train"]) == 4


def test_what_a_failed_download_found_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("down")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SlimError):
        MNISTData(root=str(tmp_path / "empty" / "new")).setup()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


@pytest.fixture
def fake_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two batches of ten images in CIFAR-10's own format."""
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    random = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        content = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    return tmp_path


def test_cifar_files_become_batches(fake_cifar: Path) -> None:
    one = CIFAR10Data(root=str(fake_cifar), batch_size=4, augment=False, val_fraction=0.1)
    one.setup()
    assert one.class_names == tuple("abcdefghij") and one.counts == {"train": 18, "val": 2}
    raw = pickle.loads((fake_cifar / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    images = torch.cat([x for x, _ in one.test_dataloader()])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (one.mean, one.std))
    expected = (torch.from_numpy(raw).view(20, 3, 32, 32).float() / 255 - mean) / std
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)


def test_another_image_size_scales_every_batch(fake_cifar: Path) -> None:
    one = CIFAR10Data(root=str(fake_cifar), batch_size=4, image_size=48)
    images, _ = next(iter(one.train_dataloader()))
    assert images.shape == (4, 3, 48, 48) and one.image_size == 48


def test_a_changed_pickle_is_never_opened(tmp_path: Path) -> None:
    """torchvision checks the checksum before it unpickles: ours is not the real file, so nothing is loaded."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    for index in range(1, 6):
        (base / f"data_batch_{index}").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(SlimError, match="corrupted"):
        CIFAR10Data(root=str(tmp_path), download=False).setup()


def test_mnist_files_become_batches_and_damage_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = (0x803).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(index % 10 for index in range(20))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4, "big") + (20).to_bytes(4, "big") + labels)
    one = MNISTData(root=str(tmp_path), batch_size=4)
    images, _ = next(iter(one.train_dataloader()))
    assert images.shape == (4, 1, 28, 28)
    (raw / "train-images-idx3-ubyte").write_bytes(gzip.compress(b"not digits"))
    with pytest.raises(SlimError, match="mnist must be on disk"):
        MNISTData(root=str(tmp_path), download=False).setup()


def test_zoom_needs_files() -> None:
    with pytest.raises(SlimError, match=r"data\.augment=crop"):
        DigitsData(augment="zoom")


@pytest.mark.parametrize("limit", [1, 100, 10_000])
def test_limits_never_leave_what_there_is(limit: int) -> None:
    one = DigitsData(batch_size=1, limit_train=limit, limit_test=limit)
    one.setup()
    one.setup("test")
    assert one.counts["train"] == min(limit, 1437 - one.counts["val"]) and one.counts["test"] == min(limit, 360)
    assert one.counts["val"] == max(1, round(min(limit, 1437) * 0.1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("val_fraction", [0.1, 0.0])
def test_lightning_runs_the_module(tmp_path: Path, val_fraction: float) -> None:
    import pytorch_lightning as pl

    class Counter(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1024, 10)
            self.seen = {"train": 0, "val": 0, "test": 0}

        def step(self, batch: Any, part: str) -> torch.Tensor:
            self.seen[part] += len(batch[1])
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.step(batch, "train")

        def validation_step(self, batch: Any, index: int) -> None:
            self.step(batch, "val")

        def test_step(self, batch: Any, index: int) -> None:
            self.step(batch, "test")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    one, module = DigitsData(val_fraction=val_fraction, limit_train=200), Counter()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        inference_mode=False,
        **quiet,
    )
    trainer.fit(module, datamodule=one)
    assert one._test is None
    trainer.test(module, datamodule=one, verbose=False)
    assert module.seen == {"train": 2 * 192, "val": 2 * round(200 * val_fraction), "test": 360}
