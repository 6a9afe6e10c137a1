"""Where images with masks come from: scenes, torchvision's data sets, folders."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from slim.data import options
from slim.data.decode import read_image
from slim.data.downloads import fetch
from slim.data.listing import checksum, parts_of
from slim.data.pictures import Pictures, mask_of, picture_of
from slim.data.scenes import IGNORE, SceneOptions
from slim.data.splits import permutation
from slim.data.task_data import normalized
from slim.errors import SlimError

Statistics = dict[str, tuple[float, ...]]
SCENES: Statistics = {"mean": (0.25, 0.25, 0.25), "std": (0.2, 0.2, 0.2)}
IMAGENET: Statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_TEST_SHARE = 0.2  # of a folder without test images
_LOOKED_AT = 32  # masks
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Normalized:
    """Bytes and a byte mask to floats and int64; ``mean`` and ``std`` per channel, of ``usual`` where they are None."""

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None, usual: Statistics) -> None:
        self.given = mean is not None or std is not None
        self.mean = options.per_channel("mean", mean, 3, positive=False) or usual["mean"]
        self.std = options.per_channel("std", std, 3, positive=True) or usual["std"]

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (3, H, W) and uint8 (H, W) to float32 and int64 of the same shapes."""
        return normalized(image, self.mean, self.std), mask.long()


class SceneMasks:
    """Scenes of digits, rendered when they are opened."""

    name, in_channels, has_val, collate, where = "segmentation_digits", 3, True, None, "embedded"
    class_names = ("background", *"0123456789")
    num_classes = 11

    def __init__(self, scenes: SceneOptions, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        self.scenes, self.image_size = scenes, scenes.image_size
        self.finish = Normalized(mean, std, SCENES)

    def prepare(self) -> None:
        """Nothing to fetch."""

    def open(self, split: str, augment: bool) -> Dataset[Any]:
        """Samples ``(image float32 (3, H, W), mask int64 (H, W))``."""
        scenes = self.scenes.render(split)
        images, masks = torch.stack([scene.image for scene in scenes]), torch.stack([scene.mask for scene in scenes])
        return TensorDataset(normalized(images, self.finish.mean, self.finish.std), masks.long())


class _Pictures:
    """What the sets of photographs share."""

    in_channels, has_val, collate = 3, False, None

    def __init__(
        self,
        name: str,
        where: Path,
        classes: Sequence[str],
        size: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.name, self.where, self.class_names = name, str(where), tuple(classes)
        self.num_classes = len(self.class_names)
        self.image_size = options.integer("image_size", size, 1)
        self.finish = Normalized(mean, std, IMAGENET)


class DownloadedMasks(_Pictures):
    """A data set of torchvision that gives pairs of Pillow images."""

    def __init__(
        self,
        name: str,
        root: str,
        download: bool,
        classes: Sequence[str],
        size: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.root, self.download = Path(root).expanduser().absolute(), bool(download)
        super().__init__(name, self.root, classes, size, mean, std)
        self.make: Any = None  # (split, download) -> torchvision's data set of Pillow pairs
        self.classes: dict[int, int] = {}  # from values in the files to classes, where they differ

    def prepare(self) -> None:
        """Download what is missing."""
        fetch(self._all, self.root, self.download, self._absent)

    def open(self, split: str, augment: bool) -> Dataset[Any]:
        """Samples ``(image float32 (3, H, W), mask int64 (H, W))``."""
        try:
            content = self.make(split, download=False)
        except Exception as error:
            raise self._absent(error) from error
        return Pictures(len(content), partial(self._read, content), self.image_size, augment, self.finish)

    def _read(self, content: Any, position: int) -> tuple[Tensor, Tensor]:
        image, mask = content[position]
        classes = mask_of(mask)
        if self.classes:
            table = torch.full((256,), IGNORE, dtype=torch.uint8)
            table[list(self.classes)] = torch.tensor(list(self.classes.values()), dtype=torch.uint8)
            classes = table[classes.long()]
        return picture_of(image), classes

    def _all(self, download: bool) -> None:
        for split in ("train", "test"):
            self.make(split, download=download)

    def _absent(self, error: Exception) -> SlimError:
        return SlimError(
            f"{self.name} must be on disk or downloadable. Got {type(error).__name__}: {error} "
            f"(data.root={self.root}). Put torchvision's files there, or use data=segmentation_digits, "
            "which needs no network."
        )


class MaskFolder(_Pictures):
    """``images`` with ``masks``, in parts or not."""

    def __init__(
        self, root: Path, classes: int, size: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        super().__init__("segmentation_folder", root, [str(index) for index in range(classes)], size, mean, std)
        self.root = root
        self._parts = parts_of(root)
        if self._parts and not {"train", "test"} <= set(self._parts):
            raise SlimError(
                f"a folder with parts needs train and test. Got {', '.join(self._parts)} (data.dir={root}). "
                "Add the other, or put images and masks straight into it."
            )
        self.has_val = "val" in self._parts

    def prepare(self) -> None:
        """Nothing to fetch; looks at all parts, so that what the test images lack is told before the training."""
        for folder in self._parts.values() or [self.root]:
            _pairs(folder)

    def fingerprint(self) -> str:
        """A checksum of the names and sizes of the images of training and validation, and of their masks."""
        folders = [self._parts.get(split, self.root) for split in ("train", "val")[: 1 + self.has_val]]
        files = (path for folder in folders for pair in _pairs(folder) for path in pair)
        return checksum((str(path.relative_to(self.root)), path.stat().st_size) for path in files)

    def open(self, split: str, augment: bool) -> Dataset[Any]:
        """Samples ``(image float32 (3, H, W), mask int64 (H, W))``."""
        files = _pairs(self._parts.get(split, self.root))
        if not self._parts:
            order = permutation(len(files)).tolist()
            held_out = max(1, round(len(order) * _TEST_SHARE))
            chosen = order[-held_out:] if split == "test" else order[:-held_out]
            files = [files[position] for position in sorted(chosen)]
        if split == "train" and self.num_classes == 2:
            _check_foreground([mask for _, mask in files])
        return Pictures(len(files), partial(self._read, files), self.image_size, augment, self.finish)

    def _read(self, files: list[tuple[Path, Path]], position: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        image, mask = files[position]
        try:
            with Image.open(mask) as content:
                classes = mask_of(content)
            pixels = read_image(image, 3)
        except Exception as error:  # Pillow's plugins raise many kinds
            raise SlimError(f"every picture must be readable. Got {error} ({image}, {mask}). Replace it.") from error
        values = classes[classes != IGNORE]
        if classes.ndim != 2 or (len(values) and int(values.max()) >= self.num_classes):
            raise SlimError(
                f"a mask must hold one class below {self.num_classes} per pixel. Got values up to "
                f"{int(classes.max())}, shape {tuple(classes.shape)} ({mask}). Set data.num_classes or mend the mask."
            )
        if classes.shape != pixels.shape[1:]:
            raise SlimError(
                f"a mask must have its picture's size. Got {tuple(classes.shape)} for {tuple(pixels.shape[1:])} "
                f"({mask}). Mend the mask."
            )
        return pixels, classes


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Pictures and their masks, by name.

    Raises:
        SlimError: there are none, or one without the other.
    """
    images = folder / "images"
    found = (path for path in images.glob("*") if not path.name.startswith("."))
    files = sorted(path for path in found if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise SlimError(
            f"{images} must hold pictures, with masks beside it. Got none (data.dir). Set data.dir to their folder."
        )
    pairs = [(path, folder / "masks" / f"{path.stem}.png") for path in files]
    missing = [path.name for path, mask in pairs if not mask.is_file()]
    if missing:
        raise SlimError(
            f"every picture needs masks/<name>.png. Got none for {', '.join(missing[:5])} (data.dir={folder}). "
            "Add the mask or remove the picture."
        )
    return pairs


def voc(split: str, *, download: bool, year: str, root: str) -> Any:
    """PASCAL VOC by torchvision."""
    from torchvision.datasets import VOCSegmentation

    return VOCSegmentation(root, year, "val" if split == "test" else "train", download=download)


def pet(split: str, *, download: bool, root: str) -> Any:
    """Oxford-IIIT Pet by torchvision."""
    from torchvision.datasets import OxfordIIITPet

    name = "test" if split == "test" else "trainval"
    return OxfordIIITPet(root, name, target_types="segmentation", download=download)


def _check_foreground(masks: list[Path]) -> None:
    """Refuse masks of 0 and 255 for two classes: 255 is ignored, so that nothing would be learned.

    A sample is read, spread over all; one that cannot be read is told when its picture is.

    Raises:
        SlimError: no mask of the sample has class 1, and some have 255.
    """
    from PIL import Image

    found: set[int] = set()
    for mask in masks[:: max(1, len(masks) // _LOOKED_AT)]:
        with contextlib.suppress(Exception), Image.open(mask) as content:
            found |= set(torch.unique(mask_of(content)).tolist())
    if IGNORE in found and 1 not in found:
        raise SlimError(
            f"a mask holds the numbers of its classes, and {IGNORE} where it is to be ignored. Got no class 1 beside "
            f"{IGNORE} in {masks[0].parent}. Write 1 for the foreground."
        )
