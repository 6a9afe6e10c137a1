"""Training batches as a function of (seed, epoch), which can start in the middle of an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
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
    words = np.random.SeedSequence(key).generate_state(3, dtype=np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class Feed:
    """Wraps any loader for Lightning; the order and the augmentation of an epoch depend on nothing but the key.

    The loader draws from generators of its own: the network's dropout, say, does not change the batches. Lightning saves
    ``state_dict`` with its loops and hands it back, and the feed goes on with the next batch.

    Args:
        loader: Sized iterable of batches; re-iterable.
        key: Non-negative integers, such as (seed, phase).
        rank, world: This process takes every ``world``-th batch, beginning with ``rank``.
        limit: At most so many batches per epoch (of this process).
    """

    def __init__(
        self, loader: Iterable[Any], key: tuple[int, ...], *, rank: int = 0, world: int = 1, limit: int | None = None
    ) -> None:
        self.loader = loader
        self.key = key
        self.rank, self.world = rank, world
        self.length = len(loader) // world  # type: ignore[arg-type]
        if limit is not None:
            self.length = min(self.length, limit)
        self.epoch = 0
        self.batch = 0
        self._walk = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self._walk += 1
        return self._batches(self._walk)

    def _batches(self, walk: int) -> Iterator[Any]:
        # Lightning makes an iterator before it needs one and drops it again: nothing happens before the first batch.
        if self.batch >= self.length:
            self.epoch, self.batch = self.epoch + 1, 0
        begin = self.batch
        outside = random_state()
        seed_all(*self.key, self.epoch)
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(self.epoch)
        source = iter(self.loader)
        inside = random_state()
        set_random_state(outside)
        for index in range(self.length):
            outside = random_state()
            set_random_state(inside)
            try:
                shares = [next(source) for _ in range(self.world)]
            finally:
                inside = random_state()
                set_random_state(outside)
            if index < begin:
                continue
            if walk != self._walk:
                return  # a newer iterator has taken over
            self.batch = index + 1
            yield shares[self.rank]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from."""
        ended = self.batch >= self.length
        return {"epoch": self.epoch + ended, "batch": 0 if ended else self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self.epoch, self.batch = state["epoch"], state["batch"]
