"""MNIST, Fashion-MNIST, CIFAR and SVHN by torchvision's own classes, downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from slim.data.downloads import fetch
from slim.data.memory import MemorySource
from slim.errors import SlimError


class DatasetInfo(NamedTuple):
    """What is known about a data set before it is read; mean and deviation are of its training images."""

    loader: str  # class in torchvision.datasets
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    mirror: bool
    files: str  # files to place by hand, for machines without a network


_IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"
# Augmentation is Network Slimming's (section 4.1): shift and mirror for CIFAR, none for SVHN.
DATASETS = {
    "mnist": DatasetInfo("MNIST", 10, 1, 28, (0.1307,), (0.3081,), 2, False, f"MNIST/raw/{_IDX}"),
    "fashion_mnist": DatasetInfo("FashionMNIST", 10, 1, 28, (0.2860,), (0.3530,), 2, True, f"FashionMNIST/raw/{_IDX}"),
    "cifar10": DatasetInfo(
        "CIFAR10",
        10,
        3,
        32,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        4,
        True,
        "cifar-10-python.tar.gz",
    ),
    "cifar100": DatasetInfo(
        "CIFAR100",
        100,
        3,
        32,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        4,
        True,
        "cifar-100-python.tar.gz",
    ),
    "svhn": DatasetInfo(
        "SVHN",
        10,
        3,
        32,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        0,
        False,
        "train_32x32.mat and test_32x32.mat",
    ),
}


class TorchvisionSet:
    """One of :data:`DATASETS`, held in memory in its own size and scaled per batch if ``image_size`` differs.

    Args:
        name: Which.
        root: Folder of the downloaded files.
        download: Whether missing files may be downloaded.
        image_size: Height and width of batches; None for the data set's own.
    """

    has_val = False

    def __init__(self, name: str, root: str, download: bool, image_size: int | None) -> None:
        self.name, self.info = name, DATASETS[name]
        self.root = Path(root).expanduser().absolute()
        self.download = download
        self.num_classes, self.in_channels = self.info.num_classes, self.info.in_channels
        self.image_size = image_size or self.info.image_size
        self.mean: tuple[float, ...] = self.info.mean
        self.std: tuple[float, ...] = self.info.std
        self.padding, self.mirror = self.info.padding, self.info.mirror
        self.class_names = tuple(str(index) for index in range(self.num_classes))
        self.where = str(self.root)
        self._ready = False
        self._read: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def prepare(self) -> None:
        """Download what is missing.

        Raises:
            SlimError: nothing on disk and no way to get it.
        """
        if self._ready:
            return
        fetch(self._both, self.root, self.download, self._absent)
        self._ready = True

    def _both(self, download: bool) -> None:
        for split in ("train", "test"):  # some have a file for each
            self._dataset(split, download=download)

    def count(self, split: str) -> int:
        """Images of ``split``."""
        return len(self._arrays(split)[1])

    def open(self, split: str, index: torch.Tensor) -> MemorySource:
        """The images of ``split`` at positions ``index``."""
        images, labels = self._arrays(split)
        # Free the rest: the source holds a copy of its images.
        del self._read[split]
        return MemorySource(images[index], labels[index])

    def _arrays(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        if split not in self._read:
            self.prepare()
            try:
                dataset = self._dataset(split, download=False)
                pixels = torch.as_tensor(np.asarray(dataset.data))
                labels = torch.as_tensor(np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None))))
            except Exception as error:
                raise self._absent(error) from error
            # MNIST has no channel axis, CIFAR has it last, SVHN first.
            if pixels.ndim == 3:
                pixels = pixels.unsqueeze(1)
            elif pixels.shape[1] != self.in_channels:
                pixels = pixels.permute(0, 3, 1, 2)
            self._read[split] = pixels.contiguous(), labels.to(torch.int64)
            self.class_names = tuple(map(str, getattr(dataset, "classes", self.class_names)))
        return self._read[split]

    def _dataset(self, split: str, download: bool) -> Any:
        from torchvision import datasets

        which: dict[str, Any] = {"split": split} if self.name == "svhn" else {"train": split == "train"}
        return getattr(datasets, self.info.loader)(str(self.root), download=download, **which)

    def _absent(self, error: Exception) -> SlimError:
        return SlimError(
            f"{self.name} must be on disk or downloadable. Got {type(error).__name__}: {error} "
            f"(data.root={self.root}). Put {self.info.files} into {self.root}, "
            "or use data=digits, which needs no network."
        )
