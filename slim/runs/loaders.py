"""Training batches as a function of (seed, epoch), which can start in the middle of an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = tuple[Any, Any, torch.Tensor]


def random_state() -> RandomState:
    """State of the global generators of Python, numpy and torch (CPU)."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_state(state: RandomState) -> None:
    """Counterpart of :func:`random_state`."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def seed_all(*key: int) -> None:
    """Seed Python, numpy and torch (all devices) from a key of non-negative integers."""
    state = np.random.SeedSequence(key).generate_state(3, dtype=np.uint32)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


class ResumableLoader:
    """Wraps any loader for Lightning and remembers the position of the next batch.

    Lightning saves ``state_dict`` with its loops and hands it back, and iteration goes on with the next batch. Our own
    loaders jump there (``set_position``). Any other loader is made repeatable: it draws from generators of its own,
    seeded by (key, epoch), and the batches before the position are read and dropped.

    Args:
        loader: Sized iterable of batches; re-iterable. It gives this process its share already.
        key: Non-negative integers, such as (seed, phase).
        limit: Batches of an epoch, a number or a share: the ``limit_train_batches`` that the Trainer has, too.
        same: Every iteration is that of epoch 0: for validation, which keeps no position.
    """

    def __init__(
        self, loader: Any, key: tuple[int, ...], *, limit: int | float | None = None, same: bool = False
    ) -> None:
        self.key, self.same = key, same
        self.loader = loader
        limit = 1.0 if limit is None else limit
        self.length: int = int(len(loader) * limit) if isinstance(limit, float) else min(len(loader), limit)
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        return len(self.loader)  # of which Lightning takes its limit

    def __iter__(self) -> Iterator[Any]:
        # Lightning makes an iterator before it needs one and may drop it again: nothing happens before the first batch.
        if self.same:
            self.batch = 0
        elif self.batch >= self.length:
            self.epoch, self.batch = self.epoch + 1, 0
        jumps = hasattr(self.loader, "set_position")
        source = self._positioned() if jumps else self._replayed()
        for index, batch in enumerate(source, start=self.batch):
            if index >= self.length:
                return
            self.batch = index + 1
            yield batch

    def _positioned(self) -> Iterator[Any]:
        self.loader.set_position(self.epoch, self.batch)
        return iter(self.loader)

    def _replayed(self) -> Iterator[Any]:
        outside = random_state()
        seed_all(*self.key, self.epoch)
        self._tell_epoch()
        source, dropped = self._iterator(), self.batch
        while True:
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                inside = random_state()
                set_random_state(outside)
            if dropped:
                dropped -= 1
            else:
                yield batch
            outside = random_state()
            set_random_state(inside)

    def _tell_epoch(self) -> None:
        # Lightning tells the sampler of a loader that it was given, not one that is wrapped.
        batches = getattr(self.loader, "batch_sampler", None)
        for sampler in (getattr(self.loader, "sampler", None), batches, getattr(batches, "sampler", None)):
            tell = getattr(sampler, "set_epoch", None)
            if callable(tell):
                tell(self.epoch)

    def _iterator(self) -> Iterator[Any]:
        # Workers that outlive an epoch draw on from it; those of a resumed run begin with this one.
        lasting = getattr(self.loader, "persistent_workers", False) and hasattr(self.loader, "_get_iterator")
        return self.loader._get_iterator() if lasting else iter(self.loader)

    def state_dict(self) -> dict[str, int]:
        """Epoch and index of the next batch."""
        ended = self.batch >= self.length
        return {"epoch": self.epoch + ended, "batch": 0 if ended else self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch at which ``state`` was taken."""
        self.epoch, self.batch = state["epoch"], state["batch"]


@contextmanager
def resumable(
    data: Any, key: tuple[int, ...], limit: int | float | None, position: dict[str, int] | None
) -> Iterator[Position]:
    """Inside, the loaders of a data module are :class:`ResumableLoader`, and begin at ``position``.

    Args:
        data: Any LightningDataModule. Its other hooks are as they are.
        key: See :class:`ResumableLoader`.
        limit: Likewise.
        position: What :meth:`Position.state_dict` gave; ``None`` to begin at the first batch.
    """
    train, validation = data.train_dataloader, data.val_dataloader
    place = Position()

    def wrapped_train() -> Any:
        loader = train()
        if not _wrappable(loader):
            return loader
        # Lightning hands a loader its state back within an epoch, but not at the end of one; and it may ask for a new
        # loader every epoch, which goes on where the last one ended.
        begin = position if place.loader is None else place.loader.state_dict()
        place.loader = ResumableLoader(loader, key, limit=limit)
        if begin is not None:
            place.loader.load_state_dict(begin)
        return place.loader

    def wrapped_validation() -> Any:
        loader = validation()
        return ResumableLoader(loader, key[:1], same=True) if _wrappable(loader) else loader

    data.train_dataloader, data.val_dataloader = wrapped_train, wrapped_validation
    try:
        yield place
    finally:
        del data.train_dataloader, data.val_dataloader


class Position:
    """Position of the training loader in use."""

    def __init__(self) -> None:
        self.loader: ResumableLoader | None = None

    def state_dict(self) -> dict[str, int]:
        """Epoch and index of the next batch; empty where the loader saves its own position."""
        return {} if self.loader is None else self.loader.state_dict()


def _wrappable(loader: Any) -> bool:
    """Whether a loader can be wrapped: a single one with a length, and with several processes one that can jump."""
    try:
        len(loader)
    except TypeError:
        return False  # of a stream, which says nothing of its length
    if isinstance(loader, list | tuple | dict):
        return False
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return hasattr(loader, "set_position") or not (several and torch.distributed.get_world_size() > 1)
