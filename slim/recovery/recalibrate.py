"""Measure BatchNorm statistics afresh: after a cut, the running averages describe a network that is gone.

A few forward passes are enough; EagleEye (Li et al., ECCV 2020, arXiv:2007.02491) uses about 100 batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    n: int = 100,
    *,
    seed: int = 0,
    inputs: Callable[[Any], tuple[Any, ...]] | None = None,
) -> int:
    """Replace the running statistics of every BatchNorm by the plain average over ``n`` batches.

    Only BatchNorm layers switch to training mode, so dropout stays off and nothing else changes; momentum, modes and
    the layers' batch counters are as before when this returns. The same batches and ``seed`` give the same bits: the
    generators are seeded inside and restored (shuffling and augmentation in the loader follow them).

    Args:
        model: changed in place (statistics only).
        batches: any iterable or loader of ``x``, ``(x, ...)`` or ``{name: tensor}`` (keyword arguments).
        n: batches to average over; a shorter loader gives what it has. 0 leaves everything alone.
        seed: of torch's generators while the batches are read.
        inputs: turns a batch into the model's positional arguments, instead of the rule above.

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
    if n < 0:
        raise SlimError(f"batches to recalibrate on must be >= 0. Got n={n}. Set recovery.recalibrate_batches.")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms or n == 0:
        return 0
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    modes = [(m, m.training) for m in model.modules()]
    before = [(m, m.momentum, _count(m), _copies(m)) for m in norms]
    devices = [device] if device.type == "cuda" else []
    used = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's own cumulative average
            norm.train()
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            for batch in islice(iter(batches), n):
                args, kwargs = _arguments(batch, device, inputs)
                if _samples(args, kwargs) > 1:  # one sample has no variance
                    model(*args, **kwargs)
                    used += 1
    finally:
        for norm, momentum, count, statistics in before:
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
            if not used:
                _put_back(norm, statistics)
        for module, training in modes:
            module.training = training
    if not used:
        raise SlimError(
            "recalibration needs a batch of at least 2 samples. Got 0 usable batches. "
            "Give a loader with data, or set recovery.recalibrate_batches=0."
        )
    return used


def _arguments(
    batch: Any, device: torch.device, inputs: Callable[[Any], tuple[Any, ...]] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if inputs is not None:
        return tuple(move(a) for a in inputs(batch)), {}
    if isinstance(batch, dict):
        return (), {k: move(v) for k, v in batch.items()}
    first = batch[0] if isinstance(batch, tuple | list) else batch
    return (move(first),), {}


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    sizes = [len(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim()]
    return sizes[0] if sizes else 2


def _count(norm: nn.modules.batchnorm._BatchNorm) -> Tensor | None:
    return None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()


def _copies(norm: nn.modules.batchnorm._BatchNorm) -> list[Tensor]:
    return [t.clone() for t in (norm.running_mean, norm.running_var) if t is not None]


def _put_back(norm: nn.modules.batchnorm._BatchNorm, statistics: list[Tensor]) -> None:
    for buffer, saved in zip(
        [t for t in (norm.running_mean, norm.running_var) if t is not None], statistics, strict=True
    ):
        buffer.copy_(saved)
