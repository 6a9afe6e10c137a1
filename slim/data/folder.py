"""Any user's own images: one subfolder per class."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from slim.data.cache import load_or_decode, statistics
from slim.data.decode import read_image, resize_center_crop, unreadable_error
from slim.data.listing import Listing, checksum, class_folders, listing, parts_of
from slim.data.loader import Source
from slim.data.memory import MemorySource
from slim.data.splits import permutation
from slim.data.stream import StreamSource
from slim.errors import SlimError

log = logging.getLogger(__name__)

_TEST_SHARE = 0.2  # of a folder without one for testing
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")  # hardly names of classes
_MEASURED = 2000  # images that give mean and deviation of a set too large to decode first


class ImageFolder:
    """Images below ``folder``.

    Either ``train/<class>`` with ``test/<class>`` or ``val/<class>`` (or ``valid``, ``validation``), or
    ``train/<class>`` or ``<class>`` alone, of which a fixed fifth is the test set. With all three, ``val`` is the
    validation set. Classes are the subfolders of the training images.

    Args:
        folder: The folder.
        image_size: Images are scaled and cut to this height and width.
        in_channels: 3 for colour, 1 for grey.
        budget: Bytes that decoded images may take; more are streamed.
        workers: Processes that decode when streaming.
        zoom: Crops of random size, which need the files in every epoch: always streamed.

    Raises:
        SlimError: the folder is missing or empty or has one class, or its parts disagree.
    """

    name = "image_folder"
    mirror = True

    def __init__(
        self, folder: str, *, image_size: int, in_channels: int, budget: float, workers: int, zoom: bool
    ) -> None:
        self.root = Path(folder).expanduser()
        self.image_size, self.in_channels = image_size, in_channels
        self.padding = image_size // 8
        self.budget, self.workers, self.zoom = budget, workers, zoom
        parts = parts_of(self.root)
        self._whole = "train" not in parts or len(parts) == 1
        if self._whole:
            parts = {"train": parts.get("train", self.root)}
        elif "test" not in parts:
            parts["test"] = parts.pop("val")
        self._parts = parts
        self.class_names = class_folders(parts["train"])
        if parts["train"] == self.root and (odd := [name for name in self.class_names if name.lower() in _PARTS]):
            raise SlimError(
                f"a folder with parts needs train. Got {', '.join(odd)} beside no train (data.dir={self.root}). "
                "Call them train, val and test, or put the classes straight into data.dir."
            )
        for part in parts.values():
            if (other := class_folders(part)) != self.class_names:
                odd = sorted(set(other) ^ set(self.class_names))
                raise SlimError(
                    f"all parts must have the same classes. Got {', '.join(odd[:5])} in only one of "
                    f"{parts['train']} and {part}. Add or remove the class (data.dir)."
                )
        self.num_classes = len(self.class_names)
        self.has_val = "val" in parts
        self.where = str(self.root)
        self.note = "a fixed fifth of all images is the test set" if self._whole else ""
        self.mean: tuple[float, ...] | None = None
        self.std: tuple[float, ...] | None = None
        self._lists: dict[str, Listing] = {}

    def prepare(self) -> None:
        """Nothing to fetch; lists the test images, too, so that a class without any is told before the training."""
        for split in self._parts:
            self._list(split)

    def count(self, split: str) -> int:
        """Images of ``split`` (train, val, test)."""
        return len(self._list(split).files)

    def fingerprint(self) -> str:
        """A checksum of the names and sizes of the images of training and validation."""
        lists = [self._list(split) for split in ("train", "val")[: 1 + self.has_val]]
        return checksum((file, size) for each in lists for file, (size, _) in zip(each.files, each.stamps, strict=True))

    def open(self, split: str, index: torch.Tensor) -> Source:
        """The images of ``split`` at positions ``index``: decoded once if they fit the budget, else streamed.

        Raises:
            SlimError: images that cannot be read, by name.
        """
        files = self._list(split)
        size, channels = self.image_size, self.in_channels
        each = channels * size**2
        whole, some = len(files.files) * each, len(index) * each
        title = f"{split} images"
        if self.zoom or some > self.budget:
            reason = "random zoom needs the files" if self.zoom else f"{some / 1e9:.1f} GB exceed the memory budget"
            log.info("%s are streamed by %d workers: %s (data.memory_budget_gb)", title, self.workers, reason)
            if split == "train":
                self._measure(files.subset(index))
            return StreamSource(files.subset(index), size, channels, self.workers, self.zoom)
        if whole <= self.budget:
            # The whole split is cached, so that runs with other limits use it; the requested images stay in memory.
            content = load_or_decode(files, size, channels, title)
            images = content.images[index]
        else:
            content = load_or_decode(files.subset(index), size, channels, title)
            images = content.images
        if split == "train":
            self.mean, self.std = content.mean, content.std
        return MemorySource(images, files.labels[index])

    def _measure(self, files: Listing) -> None:
        step = max(1, len(files.files) // _MEASURED)
        images, bad = [], []
        for file in files.files[::step]:
            try:
                images.append(resize_center_crop(read_image(files.root / file, self.in_channels), self.image_size))
            except SlimError as error:
                bad.append((file, str(error)))
        if bad:
            raise unreadable_error(files.root, bad)
        self.mean, self.std = statistics(torch.stack(images))

    def _list(self, split: str) -> Listing:
        if split not in self._lists:
            if not self._whole:
                self._lists[split] = listing(self._parts[split], self.class_names)
            else:
                files = listing(self._parts["train"], self.class_names)
                order = permutation(len(files.files))
                held_out = max(1, round(len(order) * _TEST_SHARE))
                # Sorted again, so that limits count over files in their own order as with train/ and test/.
                self._lists["train"] = files.subset(order[:-held_out].sort().values)
                self._lists["test"] = files.subset(order[-held_out:].sort().values)
        return self._lists[split]
