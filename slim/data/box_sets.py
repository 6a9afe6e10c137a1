"""Where images with boxes come from: scenes, torchvision's VOC, files in COCO's format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from slim.data import options
from slim.data.decode import read_image
from slim.data.downloads import fetch
from slim.data.listing import checksum
from slim.data.mask_sets import VOC_CLASSES
from slim.data.pictures import Pictures, picture_of
from slim.data.scenes import SceneOptions
from slim.errors import SlimError

Target = dict[str, Tensor]
"""``boxes`` float32 (n, 4), x1, y1, x2, y2 in pixels; ``labels`` int64 (n,), 1 or more: 0 is background."""


class Listed(NamedTuple):
    """A picture of a JSON file."""

    name: str
    target: Target
    size: tuple[int, int]  # width and height as the file says them; 0 where it does not


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Images of one size as a tensor (N, 3, H, W), targets as a list."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def target_of(boxes: list[Any], labels: list[int]) -> Target:
    """A target; also of no box."""
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def unit(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Bytes to [0, 1]: detectors normalize by themselves."""
    return image.float() / 255, target


class SceneBoxes:
    """Scenes of digits, rendered when they are opened."""

    name, in_channels, has_val, where = "detection_digits", 3, True, "embedded"
    class_names = ("background", *"0123456789")
    num_classes = 11

    def __init__(self, scenes: SceneOptions) -> None:
        self.scenes, self.image_size = scenes, scenes.image_size
        self.collate = collate

    def prepare(self) -> None:
        """Nothing to fetch."""

    def open(self, split: str, augment: bool) -> Dataset[Any]:
        """Samples ``(image float32 (3, H, W) in [0, 1], target)``."""
        return _Listed(
            [unit(scene.image, {"boxes": scene.boxes, "labels": scene.labels}) for scene in self.scenes.render(split)]
        )


class _Listed(Dataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        return self.samples[position]


class VOCBoxes:
    """PASCAL VOC by torchvision; objects marked as difficult are left out, as in its own evaluation."""

    name, in_channels, has_val = "voc_detection", 3, False
    class_names = VOC_CLASSES
    num_classes = len(VOC_CLASSES)

    def __init__(self, root: str, download: bool, year: str, image_size: int) -> None:
        self.root, self.download, self.year = Path(root).expanduser().absolute(), bool(download), year
        self.where, self.image_size, self.collate = (
            str(self.root),
            options.integer("image_size", image_size, 1),
            collate,
        )

    def prepare(self) -> None:
        """Download what is missing."""
        fetch(self._all, self.root, self.download, self._absent)

    def open(self, split: str, augment: bool) -> Dataset[Any]:
        """Samples ``(image float32 (3, H, W) in [0, 1], target)``."""
        try:
            content = self._make(split, download=False)
        except Exception as error:
            raise self._absent(error) from error
        return Pictures(len(content), partial(_voc_sample, content), self.image_size, augment, unit)

    def _all(self, download: bool) -> None:
        for split in ("train", "test"):
            self._make(split, download=download)

    def _make(self, split: str, *, download: bool) -> Any:
        from torchvision.datasets import VOCDetection

        # Only 2007 has test images with boxes.
        name = {"2007": {"train": "trainval", "test": "test"}}.get(self.year, {"train": "train", "test": "val"})[split]
        return VOCDetection(str(self.root), self.year, name, download=download)

    def _absent(self, error: Exception) -> SlimError:
        return SlimError(
            f"{self.name} must be on disk or downloadable. Got {type(error).__name__}: {error} "
            f"(data.root={self.root}). Put torchvision's files there, or use data=detection_digits, "
            "which needs no network."
        )


def _voc_sample(content: Any, position: int) -> tuple[Tensor, Target]:
    image, description = content[position]
    boxes, labels = [], []
    for thing in description["annotation"].get("object", []):
        if thing.get("difficult", "0") != "1":
            left, top, right, bottom = (float(thing["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
            # Its pixels count from 1, and the last one belongs to the box.
            boxes.append([left - 1, top - 1, right, bottom])
            labels.append(VOC_CLASSES.index(thing["name"]))
    return picture_of(image), target_of(boxes, labels)


class CocoBoxes:
    """Images with one JSON file of boxes per part, in COCO's format; crowds are left out.

    Args:
        name: Of the data set.
        parts: ``train``, ``test`` and perhaps ``val``: folder of images and JSON file.
        image_size: Pictures are scaled to this height and width.

    Raises:
        SlimError: a file that is missing or of another format, or categories that differ between the parts.
    """

    in_channels = 3

    def __init__(self, name: str, parts: Mapping[str, tuple[Path, Path]], image_size: int) -> None:
        self.name, self.parts, self.collate = name, dict(parts), collate
        self.image_size = options.integer("image_size", image_size, 1)
        self.where, self.has_val = str(parts["train"][0]), "val" in parts
        self._read: dict[str, tuple[list[Listed], dict[int, str]]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background, then the categories in the order of their numbers in the file."""
        return ("background", *(name for _, name in sorted(self._content("train")[1].items())))

    @property
    def num_classes(self) -> int:
        """Categories and background."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """A checksum of the names of the images of training and validation, and of their boxes."""
        parts = [self._content(split)[0] for split in ("train", "val")[: 1 + self.has_val]]
        return checksum((name, target["boxes"].tolist()) for part in parts for name, target, _ in part)

    def prepare(self) -> None:
        """Nothing to fetch; looks at all parts, so that what the test images lack is told before the training."""
        for split in self.parts:
            self._content(split)

    def open(self, split: str, augment: bool) -> Dataset[Any]:
        """Samples ``(image float32 (3, H, W) in [0, 1], target)``."""
        content, _ = self._content(split)
        read = partial(_coco_sample, self.parts[split][0], content)
        return Pictures(len(content), read, self.image_size, augment, unit)

    def _content(self, split: str) -> tuple[list[Listed], dict[int, str]]:
        if split not in self._read:
            folder, path = self.parts[split]
            content, categories = read_coco(path)
            if split != "train" and categories != self._content("train")[1]:
                raise SlimError(
                    f"all parts must have the same categories. Got others in {path}. Give files that agree."
                )
            if not content:
                raise SlimError(f"every part needs pictures. Got none in {path}. Set data.{split}_boxes, or mend it.")
            if missing := [name for name, _, _ in content if not (folder / name).is_file()]:
                raise SlimError(
                    f"every picture of the JSON file must be there. Got none in {folder} for {', '.join(missing[:5])} "
                    f"({len(missing)} of {len(content)}). Set data.{split}_images, or mend {path}."
                )
            self._read[split] = content, categories
        return self._read[split]


def read_coco(path: Path) -> tuple[list[Listed], dict[int, str]]:
    """The pictures, and categories by number; labels count from 1 in the order of the numbers.

    Raises:
        SlimError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        label = {number: position for position, number in enumerate(sorted(categories), start=1)}
        found: dict[int, tuple[list[Any], list[int]]] = {int(entry["id"]): ([], []) for entry in content["images"]}
        for name, known in (("images", found), ("categories", categories)):
            if len(known) < len(content[name]):
                raise ValueError(f"{name} that share an id")
        for entry in content["annotations"]:
            x, y, width, height = box = tuple(map(float, entry["bbox"]))
            if not all(map(math.isfinite, box)):
                raise ValueError(f"a box of {entry['bbox']}")
            if not entry.get("iscrowd") and width > 0 and height > 0:
                boxes, labels = found[int(entry["image_id"])]
                boxes.append([x, y, x + width, y + height])
                labels.append(label[int(entry["category_id"])])
        listed = [
            Listed(
                str(entry["file_name"]),
                target_of(*found[int(entry["id"])]),
                (int(entry.get("width") or 0), int(entry.get("height") or 0)),
            )
            for entry in content["images"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SlimError(
            f"boxes must be a JSON file in COCO's format. Got {type(error).__name__}: {error} ({path}). "
            "Set data.train_boxes and data.test_boxes."
        ) from error
    return listed, categories


def _coco_sample(folder: Path, content: list[Listed], position: int) -> tuple[Tensor, Target]:
    name, target, (width, height) = content[position]
    try:
        image = read_image(folder / name, 3)
    except SlimError as error:
        raise SlimError(f"every picture must be readable. Got {error} ({folder / name}). Replace it.") from error
    if width and height and (height, width) != tuple(image.shape[1:]):
        raise SlimError(
            f"boxes must be those of the picture upright, as its EXIF orientation says. Got {width}x{height} in the "
            f"JSON file for {image.shape[2]}x{image.shape[1]} ({folder / name}). Mend the boxes and the size there."
        )
    return image, target
