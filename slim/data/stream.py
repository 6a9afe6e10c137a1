"""Images that do not fit in memory: decoded by worker processes while the network computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from slim.data.decode import read_image, resize_center_crop, unreadable_error
from slim.data.listing import Listing
from slim.data.sampling import drawing_from, sample_seed
from slim.errors import RunFailed, SlimError

# A reason in place of an image: an exception would arrive with the worker's traceback in its text.
Item = torch.Tensor | str


class _Files(Dataset[tuple[int, Item]]):
    """Decodes file ``i``; with ``zoom`` it also samples a crop from (seed, epoch, i) alone."""

    def __init__(self, files: Listing, size: int, channels: int, zoom: bool, seed: int, epoch: int) -> None:
        self.files, self.size, self.channels = files, size, channels
        self.zoom, self.seed, self.epoch = zoom, seed, epoch

    def __getitem__(self, position: int) -> tuple[int, Item]:
        try:
            image = read_image(self.files.root / self.files.files[position], self.channels)
        except SlimError as error:
            return position, str(error)
        crop = self._random_resized_crop(image, position) if self.zoom else resize_center_crop(image, self.size)
        return position, crop

    def _random_resized_crop(self, image: torch.Tensor, position: int) -> torch.Tensor:
        from torchvision.transforms import v2

        # The transforms draw from the global generator; without workers that is the training's own.
        with drawing_from(sample_seed(self.seed, self.epoch, position)):
            return v2.RandomResizedCrop(self.size, antialias=True)(image)  # type: ignore[no-any-return]


class StreamSource:
    """Images read from their files whenever they are needed.

    Args:
        files: The images.
        size: Height and width that batches have.
        channels: 1 or 3.
        workers: Processes that decode; 0 decodes in this one. They do not change what is read.
        zoom: Training crops a random part of random size (``RandomResizedCrop``) instead of the middle.
    """

    def __init__(self, files: Listing, size: int, channels: int, workers: int, zoom: bool = False) -> None:
        self.files, self.size, self.channels = files, size, channels
        self.workers, self.zoom = workers, zoom
        self.labels = files.labels

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> str:
        """Where the images come from, in words."""
        return f"streamed by {self.workers} worker{'s' * (self.workers != 1)}"

    def fetch(
        self, batches: Sequence[torch.Tensor], device: torch.device, seed: int, epoch: int, train: bool
    ) -> Iterator[torch.Tensor]:
        """The images of each batch of positions, uint8 (B, C, H, W) on ``device``.

        Raises:
            SlimError: a file that cannot be read, by name.
            RunFailed: a worker died.
        """
        loader: DataLoader[tuple[torch.Tensor, list[tuple[int, str]]]] = DataLoader(
            _Files(self.files, self.size, self.channels, self.zoom and train, seed, epoch),  # type: ignore[arg-type]
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            # Its own generator: the loader would otherwise draw from the training's.
            generator=torch.Generator().manual_seed(0),
        )
        try:
            for images, bad in loader:
                if bad:
                    raise unreadable_error(self.files.root, [(self.files.files[at], reason) for at, reason in bad])
                yield images.to(device, non_blocking=True)
        except (RuntimeError, OSError, EOFError) as error:
            # A worker that dies while it hands over a batch shows as a broken pipe, a reset or refused connection or
            # an end of file, whichever comes first; files that cannot be read are reported by `bad` above.
            if self.workers == 0 or (isinstance(error, RuntimeError) and "worker" not in str(error)):
                raise
            raise RunFailed(
                f"the workers that read images must live. Got {error} ({self.files.root}). "
                "Lower data.num_workers or data.batch_size; the usual cause is too little memory."
            ) from error


def _collate(items: list[tuple[int, Item]]) -> tuple[torch.Tensor, list[tuple[int, str]]]:
    """One tensor per batch, stacked in the worker: every tensor sent between processes takes a file descriptor."""
    images = [image for _, image in items if isinstance(image, torch.Tensor)]
    bad = [(at, image) for at, image in items if isinstance(image, str)]
    return torch.stack(images) if not bad else torch.empty(0, dtype=torch.uint8), bad
