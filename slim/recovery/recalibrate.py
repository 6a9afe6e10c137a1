"""Measure BatchNorm statistics afresh: after a cut, the running averages describe a network that is gone.

A few forward passes are enough; EagleEye (Li et al., ECCV 2020, arXiv:2007.02491) uses about 100 batches. They must be
of the training distribution, augmentation and batch size included: statistics of other images fit the weights worse
than the old ones do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slim.criteria.isolated import isolated
from slim.errors import SlimError, expect_whole
from slim.recovery.saved import Saved, put_back, saved


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    n: int = 100,
    *,
    seed: int = 0,
    inputs: Callable[[Any], tuple[Any, ...]] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> int:
    """Replace the running statistics of every BatchNorm by the plain average over ``n`` batches.

    A layer that no batch comes to (of another domain, of a head that only trains) keeps its own. Only BatchNorm layers
    switch to training mode, so dropout stays off and nothing else changes; momentum, modes and the layers' batch
    counters are as before when this returns. The same batches and ``seed`` give the same bits: the generators of
    Python, NumPy and torch are seeded inside and restored (shuffling and augmentation in the loader follow them). A
    loader with a ``state_dict`` is put back to its position.

    Args:
        model: changed in place (statistics only).
        batches: any iterable or loader of ``x``, ``(x, ...)`` or ``{name: tensor}`` (keyword arguments), augmented as
            in training.
        n: batches to average over; a shorter loader gives what it has. 0 leaves everything alone.
        seed: of all generators while the batches are read.
        inputs: turns a batch into the model's positional arguments, instead of the rule above.
        forward: runs the model on a batch as the loader gave it, instead of all of the above.

    Returns:
        Batches used (0 when the model has no running statistics).

    Raises:
        SlimError: ``n`` is negative, or the loader gave no batch.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrate(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    2
    >>> net[0].running_mean
    tensor([4.])
    """
    expect_whole("n", n, 0, "Set recovery.recalibrate_batches.")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms or n == 0:
        return 0
    before = [(norm, norm.momentum, _count(norm), statistics(norm)) for norm in norms]
    used = 0
    try:
        with isolated(model, seed), in_position(batches), torch.no_grad():
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # PyTorch's own cumulative average
                norm.train()
            for batch in islice(iter(batches), n):
                used += _run(model, batch, inputs, forward)
    except BaseException:
        used = 0
        raise
    finally:
        for norm, momentum, count, old in before:
            norm.momentum = momentum
            if not used or not norm.num_batches_tracked:  # no batch came to this layer
                put_back(old)
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
    if not used:
        raise SlimError(
            "recalibration needs a batch of at least 2 samples. Got 0 usable batches. "
            "Give a loader with data, or set recovery.recalibrate_batches=0."
        )
    return used


def statistics(model: nn.Module) -> Saved:
    """Every running mean and variance of a BatchNorm, as :func:`recalibrate` changes them."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
    return saved(found)


def _run(
    model: nn.Module,
    batch: Any,
    inputs: Callable[[Any], tuple[Any, ...]] | None,
    forward: Callable[[nn.Module, Any], Any] | None,
) -> bool:
    """Run the model on a batch, unless that is one sample, which has no variance."""
    if forward is not None:
        forward(model, batch)
        return True
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    args, kwargs = arguments(batch, device, inputs)
    if _samples((args, kwargs)) == 1:
        return False
    model(*args, **kwargs)
    return True


@contextmanager
def in_position(batches: Any) -> Iterator[None]:
    """A loader that knows its position has it again afterwards."""
    knows = hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict")
    position = copy.deepcopy(batches.state_dict()) if knows else None
    try:
        yield
    finally:
        if knows:
            batches.load_state_dict(position)


def arguments(
    batch: Any, device: torch.device, inputs: Callable[[Any], tuple[Any, ...]] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that a batch stands for, on ``device``."""

    def move(value: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)

    if inputs is not None:
        return tuple(move(a) for a in inputs(batch)), {}
    if isinstance(batch, dict):
        return (), {k: move(v) for k, v in batch.items()}
    first = batch[0] if isinstance(batch, tuple | list) else batch
    return (move(first),), {}


def _samples(value: Any) -> int | None:
    """Length of the first tensor in nested ``value``, or of a list of images ``(C, H, W)`` that comes before it."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    if isinstance(value, list) and value and all(isinstance(part, Tensor) and part.dim() == 3 for part in value):
        return len(value)
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((found for part in nested if (found := _samples(part)) is not None), None)


def _count(norm: nn.modules.batchnorm._BatchNorm) -> Tensor | None:
    return None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
