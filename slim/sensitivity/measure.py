"""How accuracy falls when one layer at a time loses channels: Li et al. 2017, arXiv:1608.08710, section 3.2."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slim.criteria import Scores, score
from slim.criteria.batches import eval_mode
from slim.criteria.progress import progress
from slim.errors import SlimError, expect_whole
from slim.selection.layerwise import layerwise_removals
from slim.sensitivity.forward_cache import ForwardCache, zeroed_inputs
from slim.sensitivity.result import Sensitivity

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Removed = npt.NDArray[np.bool_]
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def measure(
    graph: ChannelGraph,
    loader: Iterable[Any],
    *,
    scores: Scores | None = None,
    shares: Sequence[float] = SHARES,
    images: int = 256,
    bf16: bool = False,
    memory_mb: int = 1024,
    path: str | Path | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Accuracy against the share removed, for every layer that can lose channels. The model is left as it was.

    BatchNorm is recalibrated for every share: it normalizes with the statistics of the held-out images (no labels are
    used), in the whole network too. The outputs of layers before the thinned one are cached.

    Args:
        graph: The network's channels.
        loader: Held-out (x, y) batches; the first ``images`` are used, as one batch.
        scores: Order of removal within a layer; by default ``gamma``, or ``l1`` in a network without scales.
        shares: Shares to remove, in (0, 1).
        images: Number of held-out images; fewer when the cached outputs would take more than ``memory_mb``.
        bf16: Run the layers in bfloat16 (autocast), two to three times as fast on processors that support it.
        memory_mb: Memory limit of the cache, in MiB.
        path: A CSV, written after every layer; an unfinished one of the same analysis is continued.
        seed: Of all generators while the loader is read.

    Raises:
        SlimError: No images, shares or images out of range, or a CSV of another analysis.
    """
    shares = tuple(float(s) for s in shares)
    if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
        raise SlimError(f"shares must be ascending, in (0, 1). Got shares={list(shares)}. Set sensitivity.shares.")
    expect_whole("images", images, 1, "Set sensitivity.images to 256.")
    if scores is None:
        scores = score(graph, "gamma" if any(s.weight is not None for s in graph.scales) else "l1")
    device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
    with (
        eval_mode(graph.model, seed),
        _batch_statistics(graph.model),
        ForwardCache(graph.model) as cache,
        # Without autocast's weight cache, which would hold weights from before they were zeroed.
        torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False),
    ):
        x, y = _read_images(loader, images, device)
        x, y = _fit_memory(cache, x, y, memory_mb)
        whole = _accuracy(cache.record(x), y)
        result = Sensitivity(shares, whole, len(y), _fingerprint(graph, scores, shares, x, bf16))
        if path is not None and Path(path).exists():
            result.resume(Path(path))
        layers = layerwise_removals(graph, scores, shares)
        for name, removals in progress(layers.items(), len(layers), "sensitivity"):
            if name in result.accuracy:
                continue
            result.accuracy[name] = _layer_accuracies(graph, cache, removals, whole, x, y)
            if path is not None:
                result.save(Path(path))
    result.accuracy = {name: result.accuracy[name] for name in layers}
    return result


def _layer_accuracies(
    graph: ChannelGraph, cache: ForwardCache, removals: Iterable[Removed], whole: float, x: Tensor, y: Tensor
) -> list[float]:
    """Accuracy on (x, y) without each of the removals (n_groups,) of one layer; ``whole`` where nothing is removed."""
    row: list[float] = []
    before: Removed = np.zeros(len(graph), dtype=bool)
    for removed in removals:
        if (removed == before).all():  # a thin layer has fewer channels than there are shares
            row.append(row[-1] if row else whole)
            continue
        before = removed
        with zeroed_inputs(graph, removed) as readers:
            first = min((cache.first[r] for r in readers if r in cache.first), default=0)
            row.append(_accuracy(cache.run_from(first, x), y))
    return row


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalizes with the statistics of the batch and leaves its running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
            norm.training = True
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _read_images(loader: Iterable[Any], images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for batch in loader:
        pair = tuple(batch[:2]) if isinstance(batch, list | tuple) else (batch,)
        if len(pair) < 2 or not all(isinstance(part, Tensor) for part in pair):
            kinds = ", ".join(type(part).__name__ for part in pair)
            raise SlimError(f"Sensitivity needs (x, y) batches. Got {kinds}. Pass a loader of pairs of tensors.")
        xs.append(batch[0].to(device))
        ys.append(batch[1].to(device))
        if sum(map(len, ys)) >= images:
            break
    if not xs:
        raise SlimError("Sensitivity needs held-out images. Got an empty loader. Pass a loader with data.")
    return torch.cat(xs)[:images], torch.cat(ys)[:images]


def _fit_memory(cache: ForwardCache, x: Tensor, y: Tensor, memory_mb: int) -> tuple[Tensor, Tensor]:
    """As many images as fit into ``memory_mb`` MiB of cached outputs; two are run to measure what one takes."""
    probe = x[:2]
    cache.record(probe)
    most = int(memory_mb * 2**20 / max(1.0, cache.bytes / len(probe)))
    if most < 2:
        raise SlimError(f"Two images must fit into memory. Got memory_mb={memory_mb}. Raise sensitivity.memory_mb.")
    return x[:most], y[:most]


def _accuracy(output: Any, y: Tensor) -> float:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return float((output.float().argmax(1) == y).double().mean())


def _fingerprint(graph: ChannelGraph, scores: Scores, shares: tuple[float, ...], x: Tensor, bf16: bool) -> str:
    """A fingerprint of everything that the accuracies depend on."""
    digest = hashlib.sha256(scores.values.tobytes())
    digest.update(repr((scores.criterion, shares, bf16, tuple(x.shape), float(x.double().sum()))).encode())
    for name, p in graph.model.named_parameters():
        digest.update(f"{name} {tuple(p.shape)} {float(p.detach().double().sum())!r}".encode())
    return digest.hexdigest()[:16]
