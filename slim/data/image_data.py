"""The data module: any data set as training, validation and test batches for Lightning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningDataModule

from slim.data import options
from slim.data.calibration import CalibrationBatches
from slim.data.loader import BatchLoader, Preprocessing, Source
from slim.data.sampling import calibration_seed
from slim.data.splits import limited_index, permutation, split
from slim.errors import SlimError

log = logging.getLogger(__name__)


class ImageDataset(Protocol):
    """A data set: what is known about it, and its images by split (``train``, ``val``, ``test``)."""

    name: str
    where: str
    num_classes: int
    in_channels: int
    image_size: int
    class_names: tuple[str, ...]
    mean: Any  # tuple[float, ...] per channel, or None until the training images were opened
    std: Any
    padding: int  # pixels of the images as stored
    mirror: bool
    has_val: bool

    def prepare(self) -> None:
        """Fetch what is missing; called by one process."""

    def count(self, split: str) -> int:
        """Images of ``split``."""

    def open(self, split: str, index: torch.Tensor) -> Source:
        """The images of ``split`` at positions ``index``, in that order."""


class ImageData(LightningDataModule):
    """Training, validation and test batches ``(images float32 (B, C, H, W), labels int64 (B,))`` of a data set.

    Validation is cut from the training images by a fixed shuffle that does not depend on ``seed``; the test images
    are not read before :meth:`test_dataloader` is called.

    Args:
        dataset: The data set.
        batch_size: Training images per batch and process.
        eval_batch_size: Images per batch in validation and test.
        seed: Of order and augmentation.
        augment: ``True`` or ``"crop"``: shift by ``padding`` pixels, mirror if ``mirror``. ``"zoom"``: crops of random
            size, image_folder only. ``False`` or ``"none"``.
        padding: Pixels of the random shift; None for the data set's own.
        mirror: Whether to mirror half of the images; None for the data set's own.
        val_fraction: Share of the training images held out for validation; 0 for none.
        limit_train: Train on the first so many of the fixed shuffle
            ``torch.randperm(n, generator=torch.Generator().manual_seed(0))`` of the training images.
        limit_test: Test on so many images.
        mean: Per channel, of pixels in [0, 1]; None for the data set's own.
        std: Likewise.

    Attributes:
        device: Device of the batches; None (default) is the trainer's, or the CPU without one.

    Raises:
        SlimError: an option out of its range.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        seed: int = 0,
        augment: bool | str = True,
        padding: int | None = None,
        mirror: bool | None = None,
        val_fraction: float = 0.1,
        limit_train: int | None = None,
        limit_test: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.name: str = dataset.name
        self.device: torch.device | None = None
        self.batch_size = options.integer("batch_size", batch_size, 1)
        self.eval_batch_size = options.integer("eval_batch_size", eval_batch_size, 1)
        self.seed = options.integer("seed", seed, 0)
        self.augment = options.augmentation(augment)
        if self.augment == "zoom" and not hasattr(dataset, "zoom"):
            raise SlimError(
                f"augment=zoom needs files. Got augment='zoom' (data={dataset.name}). Set data.augment=crop."
            )
        self.padding = dataset.padding if padding is None else options.integer("padding", padding, 0)
        mirrored = options.switch("mirror", mirror)
        self.mirror = dataset.mirror if mirrored is None else mirrored
        self.val_fraction = options.fraction("val_fraction", val_fraction)
        self.limit_train = options.limit("limit_train", limit_train)
        self.limit_test = options.limit("limit_test", limit_test)
        self._mean = options.per_channel("mean", mean, dataset.in_channels, positive=False)
        self._std = options.per_channel("std", std, dataset.in_channels, positive=True)
        self._fit: tuple[Source, torch.Tensor, Source, torch.Tensor] | None = None
        self._test: Source | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.dataset.in_channels

    @property
    def image_size(self) -> int:
        """Height and width of the images in a batch, pixels."""
        return self.dataset.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""
        return self.dataset.class_names

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0, 1]; measured on the training images where it is not known."""
        if self._mean is not None:
            return self._mean
        if self.dataset.mean is None:
            self.setup("fit")
        return tuple(self.dataset.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel; see :attr:`mean`."""
        if self._std is not None:
            return self._std
        if self.dataset.std is None:
            self.setup("fit")
        return tuple(self.dataset.std)

    def normalize_as(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalize as a network was trained; what the options say is kept."""
        fits = len(mean) == len(std) == self.in_channels
        if fits and self._mean is None and self._std is None:
            self._mean, self._std = tuple(mean), tuple(std)

    @property
    def counts(self) -> dict[str, int]:
        """Images of ``train``, ``val`` and, once they were read, ``test``."""
        _, train, _, val = self._open_fit()
        counts = {"train": len(train), "val": len(val)}
        return counts if self._test is None else {**counts, "test": len(self._test)}

    @property
    def fingerprint(self) -> str | None:
        """Of the files that training and validation read; None where the data set has none of the user's."""
        found: str | None = getattr(self.dataset, "fingerprint", lambda: None)()
        return found

    def describe(self) -> str:
        """The data in one line."""
        source, train, _, val = self._open_fit()
        size = f"{self.in_channels}x{self.image_size}x{self.image_size}"
        note = getattr(self.dataset, "note", "")
        return (
            f"{self.name}: {len(train):,} training and {len(val):,} validation images {size}, "
            f"{self.num_classes} classes, {source.describe()}{note and f', {note}'}"
        )

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls it in one process."""
        self.dataset.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the images of ``stage`` (``fit``, ``validate``, ``test``; None is ``fit``) if not read yet.

        Raises:
            SlimError: data that are missing, unreadable or fewer than one batch.
        """
        if stage in ("test", "predict"):
            self._open_test()
        else:
            self._open_fit()

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, augmented training batches."""
        source, train, _, _ = self._open_fit()
        return self._loader(source, train, train=True)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Validation batches in a fixed order; an empty list with ``val_fraction=0``, as Lightning wants it."""
        _, _, source, val = self._open_fit()
        return self._loader(source, val, train=False) if len(val) else []

    def test_dataloader(self) -> BatchLoader:
        """Test batches in a fixed order. The first call reads the test images."""
        source = self._open_test()
        return self._loader(source, torch.arange(len(source)), train=False)

    def calibration_batches(self, count: int = 100, device: torch.device | str | None = None) -> CalibrationBatches:
        """``count`` batches as the network is trained on, for BatchNorm's statistics: same images, size, augmentation.

        Shifts and mirrors belong to what a network has learned; statistics of images without them do not fit it.
        Running averages with PyTorch's momentum of 0.1 rest on the last 20 to 30 batches of training, so 100 are more
        than enough. The batches depend on ``seed`` alone, and are not those of any epoch.
        """
        source, train, _, _ = self._open_fit()

        def loader() -> BatchLoader:
            return BatchLoader(
                source,
                train,
                self._preprocessing(),
                batch_size=self.batch_size,
                seed=calibration_seed(self.seed),
                train=True,
                device=self._device() if device is None else device,
            )

        return CalibrationBatches(loader, count)

    def plain_batches(
        self, count: int, device: torch.device | str | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``count`` batches of ``eval_batch_size`` training images without augmentation, always the same.

        Fewer if the training set is smaller. For criteria that use data, and to evaluate where nothing is held out.
        """
        source, train, _, _ = self._open_fit()
        index = train[permutation(len(train))][: count * self.eval_batch_size]
        loader = BatchLoader(
            source,
            index,
            self._preprocessing(),
            batch_size=self.eval_batch_size,
            seed=self.seed,
            train=False,
            device=self._device() if device is None else device,
        )
        return list(loader)

    def _open_fit(self) -> tuple[Source, torch.Tensor, Source, torch.Tensor]:
        if self._fit is None:
            dataset = self.dataset
            dataset.prepare()
            # A data set with validation images of its own does not split its training images.
            share = 0.0 if dataset.has_val else self.val_fraction
            train, val = split(dataset.count("train"), share, self.limit_train)
            self._check_batch(len(train))
            source = dataset.open("train", torch.cat((train, val)))
            at = torch.arange(len(train)), torch.arange(len(train), len(train) + len(val))
            if dataset.has_val and self.val_fraction > 0:
                own = dataset.open("val", torch.arange(dataset.count("val")))
                self._fit = source, at[0], own, torch.arange(len(own))
            else:
                self._fit = source, at[0], source, at[1]
            log.info(self.describe())
        return self._fit

    def _open_test(self) -> Source:
        if self._test is None:
            self.dataset.prepare()
            self._test = self.dataset.open("test", limited_index(self.dataset.count("test"), self.limit_test))
            log.info("%s: %s test images read", self.name, f"{len(self._test):,}")
        return self._test

    def _check_batch(self, images: int) -> None:
        _, world_size = process()
        if self.batch_size * world_size > images:
            times = f" x {world_size} processes" if world_size > 1 else ""
            raise SlimError(
                f"a batch must not be larger than the training set. Got batch_size={self.batch_size}{times} for "
                f"{images} images ({self.name}). Set data.batch_size to at most {images // world_size}."
            )

    def _loader(self, source: Source, index: torch.Tensor, train: bool) -> BatchLoader:
        rank, world_size = process()
        if train:
            self._check_batch(len(index))
        return BatchLoader(
            source,
            index,
            self._preprocessing(),
            batch_size=self.batch_size if train else self.eval_batch_size,
            seed=self.seed,
            train=train,
            device=self._device(),
            rank=rank,
            world_size=world_size,
        )

    def _preprocessing(self) -> Preprocessing:
        # Random zoom happens when the files are decoded; only mirroring is left.
        padding = self.padding if self.augment == "crop" else 0
        return Preprocessing(self.mean, self.std, self.image_size, padding, self.mirror, self.augment != "none")

    def _device(self) -> torch.device:
        if self.device is not None:
            return self.device
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def process() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
