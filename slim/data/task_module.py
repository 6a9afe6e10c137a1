"""Data whose targets are more than one label: ordinary data sets in ordinary loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slim.data import options
from slim.data.splits import limited, split
from slim.errors import SlimError

Collate = Callable[[list[tuple[Tensor, Any]]], tuple[Any, Any]]


class TaskOrigin(Protocol):
    """A data set: what is known about it, and its samples by split (``train``, ``val``, ``test``)."""

    name: str
    where: str
    num_classes: int
    in_channels: int
    image_size: int
    class_names: tuple[str, ...]
    has_val: bool
    collate: Collate | None  # how samples become a batch; None stacks them

    def prepare(self) -> None:
        """Fetch what is missing; called by one process."""

    def open(self, split: str, augment: bool) -> Dataset[tuple[Tensor, Any]]:
        """All samples ``(image float32 (C, H, W), target)`` of ``split``; with a length."""


class TaskData(LightningDataModule):
    """Training, validation and test batches of an origin, by PyTorch's own ``DataLoader``.

    The order of an epoch follows from ``seed`` and the number of epochs that the loader gave before. Random
    augmentations draw from torch's generator, in workers from one that the loader seeds.

    Args:
        origin: The data set.
        batch_size: Training images per batch and process; those that do not fill the last one are left out.
        eval_batch_size: Images per batch in validation and test.
        seed: Of the order.
        augment: Whether training samples are augmented.
        val_fraction: Share of the training images held out for validation where the origin has none; 0 for none.
        limit_train: Train on so many images of a fixed shuffle.
        limit_test: Test on so many images.
        num_workers: Processes that load samples.

    Raises:
        SlimError: an option out of its range.
    """

    def __init__(
        self,
        origin: TaskOrigin,
        *,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        augment: bool = True,
        val_fraction: float = 0.1,
        limit_train: int | None = None,
        limit_test: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.origin = origin
        self.name = origin.name
        self.batch_size = options.whole("batch_size", batch_size, 1)
        self.eval_batch_size = options.whole("eval_batch_size", eval_batch_size, 1)
        self.seed = options.whole("seed", seed, 0)
        self.augment = bool(augment)
        self.val_fraction = options.fraction("val_fraction", val_fraction)
        self.limit_train = options.limit("limit_train", limit_train)
        self.limit_test = options.limit("limit_test", limit_test)
        self.num_workers = options.whole("num_workers", num_workers, 0)
        self._sets: dict[str, Dataset[Any]] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return self.origin.num_classes

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.origin.in_channels

    @property
    def image_size(self) -> int:
        """Height and width of the images in a batch, pixels."""
        return self.origin.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""
        return self.origin.class_names

    @property
    def counts(self) -> dict[str, int]:
        """Images of ``train``, ``val`` and, once they were opened, ``test``."""
        self.setup()
        return {name: len(content) for name, content in self._sets.items()}  # type: ignore[arg-type]

    def describe(self) -> str:
        """The data in one line."""
        counts = self.counts
        size = f"{self.in_channels}x{self.image_size}x{self.image_size}"
        return (
            f"{self.name}: {counts['train']:,} training and {counts['val']:,} validation images {size}, "
            f"{self.num_classes} classes, {self.origin.where}"
        )

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls it in one process."""
        self.origin.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the images of ``stage`` (``fit``, ``validate``, ``test``; None is ``fit``) unless they were.

        Raises:
            SlimError: data that are missing or fewer than one batch.
        """
        if stage in ("test", "predict"):
            if "test" not in self._sets:
                self.origin.prepare()
                content = self.origin.open("test", augment=False)
                self._sets["test"] = _Part(content, limited(_size(content), self.limit_test))
        elif "train" not in self._sets:
            self._open_fit()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        self.setup("fit")
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader("train", self.batch_size, shuffle=True, drop_last=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches in a fixed order; an empty list where there are none, as Lightning wants it."""
        self.setup("validate")
        return self._loader("val", self.eval_batch_size) if _size(self._sets["val"]) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in a fixed order."""
        self.setup("test")
        return self._loader("test", self.eval_batch_size)

    def calibration_batches(self, count: int, device: torch.device | str | None = None) -> list[tuple[Any, Any]]:
        """``count`` batches of training images as trained on, always the same; for BatchNorm's statistics and scores.

        More than an epoch goes around again.
        """
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            loader = self.train_dataloader()
            batches = list(islice(cycle(loader) if len(loader) >= count else _again(loader), count))
        return batches if device is None else [_moved(batch, torch.device(device)) for batch in batches]

    def _open_fit(self) -> None:
        origin = self.origin
        origin.prepare()
        content = origin.open("train", augment=self.augment)
        share = 0.0 if origin.has_val else self.val_fraction
        train, val = split(_size(content), share, self.limit_train)
        if self.batch_size > len(train):
            raise SlimError(
                f"a batch must not be larger than the training set. Got batch_size={self.batch_size} for {len(train)} "
                f"images ({self.name}). Set data.batch_size to at most {len(train)}."
            )
        self._sets["train"] = _Part(content, train)
        if origin.has_val and self.val_fraction > 0:
            own = origin.open("val", augment=False)
            self._sets["val"] = _Part(own, torch.arange(_size(own)))
        else:
            plain = origin.open("train", augment=False) if self.augment else content
            self._sets["val"] = _Part(plain, val)

    def _loader(self, name: str, batch_size: int, **arguments: Any) -> DataLoader[Any]:
        return DataLoader(
            self._sets[name],
            batch_size=batch_size,
            collate_fn=self.origin.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **arguments,
        )


class _Part(Dataset[Any]):
    """Some samples of a data set."""

    def __init__(self, content: Dataset[Any], index: Tensor) -> None:
        self.content, self.index = content, index.tolist()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Any:
        return self.content[self.index[position]]


def normalized(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (C, H, W) to floats: ``(image / 255 - mean) / std`` per channel."""
    centre, spread = (torch.tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in (mean, std))
    return (image.float() / 255 - centre) / spread


def _size(content: Dataset[Any]) -> int:
    return len(content)  # type: ignore[arg-type]


def _again(loader: DataLoader[Any]) -> Any:
    while True:
        yield from loader


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
