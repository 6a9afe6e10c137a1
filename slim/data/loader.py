"""Batches as a pure function of (seed, epoch, step), from memory or from workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from slim.data.augment import Normalize, crop_flip, resize
from slim.data.sampling import CropParams, epoch_order, sample_crops
from slim.errors import SlimError


class Source(Protocol):
    """Byte images by position, with their labels."""

    labels: torch.Tensor  # int64 (N,)

    def __len__(self) -> int: ...

    def describe(self) -> str:
        """Where the images come from, in words."""

    def fetch(
        self, batches: Sequence[torch.Tensor], device: torch.device, seed: int, epoch: int, train: bool
    ) -> Iterator[torch.Tensor]:
        """The images of each batch of positions, uint8 (B, C, H, W) on ``device``."""


class Preprocessing(NamedTuple):
    """How byte images become a batch: normalization, size and augmentation."""

    mean: Sequence[float]
    std: Sequence[float]
    image_size: int
    padding: int = 0  # pixels; 0 does not crop
    mirror: bool = False
    augment: bool = False


class BatchLoader:
    """An iterable of batches ``(images float32 (B, C, H, W), labels int64 (B,))`` on ``device``.

    Order and augmentation depend on ``seed``, the epoch and the image alone, so resuming needs only a position:
    :meth:`set_position`, or :meth:`state_dict` and :meth:`load_state_dict`, which Lightning calls for checkpoints.
    Without either, every iteration is the next epoch.

    With ``world_size`` > 1 step s of all ranks together sees the images that one process would see with a
    ``world_size`` times larger batch. In training every rank gets equally many batches.

    Args:
        source: The images.
        index: Positions in ``source`` that this loader reads, int64 (n,).
        preprocessing: Normalization and augmentation.
        batch_size: Images per batch and rank.
        seed: Of order and augmentation.
        train: Shuffle, and leave out the images (others every epoch) that do not fill the last batch.
        device: Device of the batches.
        rank: This process.
        world_size: Number of processes.
    """

    # Lightning checks this attribute before ``sampler``.
    batch_sampler = None

    def __init__(
        self,
        source: Source,
        index: torch.Tensor,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int,
        train: bool,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source, self.index, self.preprocessing = source, index, preprocessing
        self.batch_size, self.seed, self.train = batch_size, seed, train
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self._normalize = Normalize(preprocessing.mean, preprocessing.std, self.device)
        self._labels = source.labels[index].to(self.device)
        # The next batch; pinned when it was set explicitly and not yet read.
        self._epoch, self._step, self._pinned = 0, 0, True

    def __len__(self) -> int:
        if self.train:
            return len(self.index) // (self.batch_size * self.world_size)
        return -(-self.samples // self.batch_size)

    @property
    def samples(self) -> int:
        """Images of this rank per epoch."""
        if self.train:
            return len(self) * self.batch_size
        return len(range(self.rank, len(self.index), self.world_size))

    @property
    def sampler(self) -> BatchLoader:
        """Itself: Lightning calls ``loader.sampler.set_epoch`` when an epoch starts."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one; a position within it that was set before is kept."""
        if not (self._pinned and self._epoch == epoch):
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, step: int) -> None:
        """Make batch ``step`` of ``epoch`` the next one."""
        self._epoch, self._step, self._pinned = int(epoch), int(step), True
        self._wrap()

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position that :meth:`state_dict` gave.

        Raises:
            SlimError: it is none.
        """
        try:
            epoch, step = int(state["epoch"]), int(state["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise SlimError(f"a loader's state must hold epoch and step. Got {state!r}. Use its checkpoint.") from error
        self.set_position(epoch, step)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Runs at the first batch, not at iter(): Lightning asks for the iterator before it says which epoch it is.
        if not self._pinned and self._step:
            self._epoch, self._step = self._epoch + 1, 0
        self._pinned = False
        epoch, first = self._epoch, self._step
        batches = self._batches(epoch)[first:]
        crops = self._crops(epoch)
        positions = [self.index[batch] for batch in batches]
        images = self.source.fetch(positions, self.device, self.seed, epoch, self.train and self.preprocessing.augment)
        for step, (batch, pixels) in enumerate(zip(batches, images, strict=True), start=first):
            self._epoch, self._step = epoch, step + 1
            self._wrap()
            local = batch.to(self.device)
            if crops is not None:
                pixels = crop_flip(pixels, CropParams(*(part[local] for part in crops)), self.preprocessing.padding)
            yield self._normalize(resize(pixels, self.preprocessing.image_size)), self._labels[local]

    def _wrap(self) -> None:
        """The end of an epoch is the start of the next: a checkpoint there resumes with new batches."""
        if self._step >= max(len(self), 1):
            self._epoch, self._step = self._epoch + 1, 0

    def _batches(self, epoch: int) -> list[torch.Tensor]:
        """Positions within ``index`` of this rank's batches in ``epoch``."""
        order = epoch_order(len(self.index), self.seed, epoch) if self.train else torch.arange(len(self.index))
        mine = order[self.rank :: self.world_size][: self.samples]
        return list(torch.split(mine, self.batch_size))

    def _crops(self, epoch: int) -> CropParams | None:
        """Crops of all images in ``epoch``, on the device; None without augmentation."""
        padding, mirror = self.preprocessing.padding, self.preprocessing.mirror
        if not (self.train and self.preprocessing.augment and (padding or mirror)):
            return None
        crops = sample_crops(len(self.index), self.seed, epoch, padding=padding, mirror=mirror)
        return CropParams(*(part.to(self.device) for part in crops))
