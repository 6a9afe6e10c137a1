"""Data whose targets are more than one label: ordinary data sets in ordinary loaders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, default_collate

from slim.data import options
from slim.data.calibration import CalibrationBatches
from slim.data.image_data import process
from slim.data.sampling import calibration_seed, drawing_from, sample_seed
from slim.data.splits import limited_index, permutation, split
from slim.errors import SlimError, nearest

Collate = Callable[[list[tuple[Tensor, Any]]], tuple[Any, Any]]


_SEEDS = 2**40  # torch adds the epoch to the sampler's seed


class TaskOrigin(Protocol):
    """A data set: what is known about it, and its samples by split (``train``, ``val``, ``test``)."""

    name: str
    where: str
    in_channels: int
    image_size: int
    has_val: bool
    collate: Any  # how samples become a batch, Collate; None stacks them

    @property
    def num_classes(self) -> int:
        """Classes, background included."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""

    def prepare(self) -> None:
        """Fetch what is missing; called by one process."""

    def open(self, split: str, augment: bool) -> Dataset[tuple[Tensor, Any]]:
        """All samples ``(image float32 (C, H, W), target)`` of ``split``; with a length."""


class TaskData(LightningDataModule):
    """Training, validation and test batches of an origin, by PyTorch's own ``DataLoader``.

    The order of an epoch follows from ``seed`` and the epoch, which Lightning tells the sampler, and so does the
    augmentation of every image: workers change no batch. With several processes each reads a share, in training of
    equal size, in validation and test every image exactly once.

    Args:
        origin: The data set.
        batch_size: Training images per batch and process; those that do not fill the last one are left out.
        eval_batch_size: Images per batch in validation and test.
        seed: Of order and augmentation.
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
        self.batch_size = options.integer("batch_size", batch_size, 1)
        self.eval_batch_size = options.integer("eval_batch_size", eval_batch_size, 1)
        self.seed = options.integer("seed", seed, 0)
        self.augment = options.flag("augment", augment)
        self.val_fraction = options.fraction("val_fraction", val_fraction)
        self.limit_train = options.limit("limit_train", limit_train)
        self.limit_test = options.limit("limit_test", limit_test)
        self.num_workers = options.integer("num_workers", num_workers, 0)
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
        return {name: _size(content) for name, content in self._sets.items() if name != "plain"}

    @property
    def fingerprint(self) -> str | None:
        """Of the files that training and validation read; None where the data set has none of the user's."""
        found: str | None = getattr(self.origin, "fingerprint", lambda: None)()
        return found

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
                self._sets["test"] = _Part(content, limited_index(_size(content), self.limit_test))
        elif "train" not in self._sets:
            self._open_fit()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        self.setup("fit")
        return self._loader("train", self.batch_size, sampler=self._shuffled(self.seed), drop_last=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches in a fixed order; an empty list where there are none, as Lightning wants it."""
        self.setup("validate")
        return self._loader("val", self.eval_batch_size, sampler=self._share("val")) if _size(self._sets["val"]) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in a fixed order."""
        self.setup("test")
        return self._loader("test", self.eval_batch_size, sampler=self._share("test"))

    def calibration_batches(self, count: int = 100, device: torch.device | str | None = None) -> CalibrationBatches:
        """``count`` batches as the network is trained on, for BatchNorm's statistics: same images, size, augmentation.

        Always in the same order, which is that of no epoch; more than an epoch goes around again.
        """
        self.setup("fit")

        def loader() -> Any:
            sampler = self._shuffled(calibration_seed(self.seed))
            return self._loader("train", self.batch_size, device, sampler=sampler, drop_last=True)

        return CalibrationBatches(loader, count)

    def plain_batches(self, count: int, device: torch.device | str | None = None) -> list[tuple[Any, Any]]:
        """``count`` batches of ``eval_batch_size`` training images without augmentation, always the same.

        Fewer if the training set is smaller. For criteria that use data, and to evaluate where nothing is held out.
        """
        self.setup("fit")
        return list(islice(self._loader("plain", self.eval_batch_size, device), count))

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
        plain = origin.open("train", augment=False) if self.augment else content
        self._sets["plain"] = _Part(plain, train[permutation(len(train))])
        if origin.has_val and self.val_fraction > 0:
            own = origin.open("val", augment=False)
            self._sets["val"] = _Part(own, torch.arange(_size(own)))
        else:
            self._sets["val"] = _Part(plain, val)

    def _shuffled(self, seed: int) -> Sampler[int]:
        rank, world_size = process()
        # Lightning leaves torch's own distributed samplers as they are, and tells them the epoch.
        return _Seeded(
            self._sets["train"], world_size, rank, shuffle=True, seed=seed % _SEEDS, drop_last=world_size > 1
        )

    def _share(self, name: str) -> Sampler[int]:
        rank, world_size = process()
        return UnrepeatedDistributedSampler(self._sets[name], num_replicas=world_size, rank=rank, shuffle=False)

    def _loader(
        self, name: str, batch_size: int, device: torch.device | str | None = None, **arguments: Any
    ) -> DataLoader[Any]:
        collate = self.origin.collate or default_collate
        # Where the batches are moved somebody iterates here and now; Lightning's loaders move them later.
        workers = self.num_workers if device is None else 0
        return DataLoader(
            self._sets[name],
            batch_size=batch_size,
            collate_fn=collate if device is None else _Moving(collate, torch.device(device)),
            num_workers=workers,
            persistent_workers=workers > 0,
            # Its own: the loader would otherwise draw from the training's.
            generator=torch.Generator().manual_seed(0),
            **arguments,
        )


class _Part(Dataset[Any]):
    """Some samples of a data set."""

    def __init__(self, content: Dataset[Any], index: Tensor) -> None:
        self.content, self.index = content, index.tolist()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int | tuple[int, int]) -> Any:
        if isinstance(position, int):
            return self.content[self.index[position]]
        position, seed = position
        with drawing_from(seed):
            return self.content[self.index[position]]


class _Seeded(DistributedSampler[Any]):
    """Positions, each with the seed of its augmentation, which follows from the epoch and the image alone."""

    def __iter__(self) -> Iterator[Any]:
        return ((position, sample_seed(self.seed, self.epoch, position)) for position in super().__iter__())


def known(common: dict[str, Any]) -> dict[str, Any]:
    """Options of :class:`TaskData`, checked by name.

    Raises:
        SlimError: there is no such option; the message has the nearest.
    """
    names = [name for name in inspect.signature(TaskData.__init__).parameters if name not in ("self", "origin")]
    for name, value in common.items():
        if name not in names:
            raise SlimError(
                f"data.{name} must be an option of the data set. Got {name}={value!r}. {nearest(name, names)}"
            )
    return common


def normalized(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (..., C, H, W) to floats: ``(image / 255 - mean) / std`` per channel."""
    centre, spread = (torch.tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in (mean, std))
    return (image.float() / 255 - centre) / spread


def _size(content: Dataset[Any]) -> int:
    return len(content)  # type: ignore[arg-type]


class _Moving:
    """Collate, then move to a device."""

    def __init__(self, collate: Collate, device: torch.device) -> None:
        self.collate, self.device = collate, device

    def __call__(self, samples: list[Any]) -> Any:
        return _moved(self.collate(samples), self.device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
