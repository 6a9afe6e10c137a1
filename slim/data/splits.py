"""Training and validation split: fixed per data set, independent of the seed of the run."""

from __future__ import annotations

import torch

from slim.errors import SlimError

# Not the run's seed: runs that differ only in their seed are compared on the same validation images.
_SPLIT_SEED = 0


def permutation(count: int) -> torch.Tensor:
    """The one fixed shuffle of ``count`` images that all splits and limits are cut from, int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))


def split(count: int, val_fraction: float, limit_train: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation images among ``count``.

    Training takes the front of :func:`permutation`, validation its end, so the first ``limit_train`` images are the
    same with and without validation. With a limit, validation shrinks in proportion.

    >>> train, val = split(100, 0.1, limit_train=20)
    >>> len(train), len(val), torch.equal(train, permutation(100)[:20])
    (20, 2, True)

    Raises:
        SlimError: one of the two would be empty.
    """
    order = permutation(count)
    available = count if limit_train is None else min(limit_train, count)
    held_out = max(1, round(available * val_fraction)) if val_fraction > 0 else 0
    train = order[: min(available, count - held_out)]
    if len(train) == 0:
        raise SlimError(
            f"training needs at least one image besides validation. Got {count} images and "
            f"val_fraction={val_fraction}. Add images or set data.val_fraction=0."
        )
    return train, order[count - held_out :]


def limited_index(count: int, limit: int | None) -> torch.Tensor:
    """The first ``limit`` of the fixed permutation, or all images in their own order."""
    return torch.arange(count) if limit is None or limit >= count else permutation(count)[:limit]
