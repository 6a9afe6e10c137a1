"""How accuracy falls when one layer at a time loses channels: Li et al. 2017, arXiv:1608.08710, section 3.2."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.criteria import Scores, score
from slim.criteria.batches import untouched
from slim.criteria.progress import progress
from slim.errors import SlimError
from slim.selection.layerwise import within_layers
from slim.sensitivity.replay import Replay, silenced
from slim.sensitivity.result import Sensitivity

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

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

    BatchNorm is recalibrated for every share: it normalizes with the statistics of the held-out images themselves (no
    labels are used), for the whole network too. Layers before the one that is thinned are not computed again.

    Args:
        graph: The network's channels.
        loader: Held-out (x, y) batches; the first ``images`` are used, as one batch.
        scores: Who goes first within a layer; by default ``gamma``, or ``l1`` in a network without scales.
        shares: Shares to remove, in (0, 1).
        images: How many held-out images, fewer when remembering the layers' outputs takes more than ``memory_mb``.
        bf16: Run the layers in bfloat16 (autocast), on processors that are good at it two to three times as fast.
        memory_mb: Most memory for that, in MiB.
        path: A CSV, written after every layer; an unfinished one of the same analysis is gone on with.
        seed: Of torch's generators while the loader is read.

    Raises:
        SlimError: No images, shares out of range, or a CSV of another analysis.
    """
    shares = tuple(float(s) for s in shares)
    if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
        raise SlimError(f"shares must be ascending, in (0, 1). Got shares={list(shares)}. Set sensitivity.shares.")
    if scores is None:
        scores = score(graph, "gamma" if any(s.weight is not None for s in graph.scales) else "l1")
    device = next((p.device for p in graph.model.parameters()), torch.device("cpu"))
    with (
        untouched(graph.model, seed, device),
        _own_statistics(graph.model),
        Replay(graph.model) as replay,
        # Without its cache, which would go on answering with weights from before they were silenced.
        torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False),
    ):
        x, y = _held_out(loader, images, device)
        x, y = _affordable(replay, x, y, memory_mb)
        whole = _accuracy(replay.record(x), y)
        found = Sensitivity(shares, whole, len(y), _key(graph, scores, shares, x, bf16))
        if path is not None and Path(path).exists():
            found.go_on(Path(path))
        layers = within_layers(graph, scores, shares)
        for name, removals in progress(layers.items(), len(layers), "sensitivity"):
            if name in found.accuracy:
                continue
            row: list[float] = []
            before = np.zeros(len(graph), dtype=bool)
            for removed in removals:
                if (removed == before).all():  # a thin layer has fewer channels than there are shares
                    row.append(row[-1] if row else whole)
                    continue
                before = removed
                with silenced(graph, removed) as readers:
                    first = min((replay.first[r] for r in readers if r in replay.first), default=0)
                    row.append(_accuracy(replay.run_from(first, x), y))
            found.accuracy[name] = row
            if path is not None:
                found.save(Path(path))
    found.accuracy = {name: found.accuracy[name] for name in layers}
    return found


@contextmanager
def _own_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes with the batch at hand, and keeps no record of it."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
            norm.training = True
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _held_out(loader: Iterable[Any], images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for batch in loader:
        if isinstance(batch, Mapping) or not isinstance(batch, (list, tuple)) or len(batch) < 2:
            raise SlimError(f"Sensitivity needs (x, y) batches. Got {type(batch).__name__}. Pass a loader of pairs.")
        xs.append(batch[0].to(device))
        ys.append(batch[1].to(device))
        if sum(map(len, ys)) >= images:
            break
    if not xs:
        raise SlimError("Sensitivity needs held-out images. Got an empty loader. Pass a loader with data.")
    return torch.cat(xs)[:images], torch.cat(ys)[:images]


def _affordable(replay: Replay, x: Tensor, y: Tensor, memory_mb: int) -> tuple[Tensor, Tensor]:
    """As many images as can be remembered; two are run to see what one takes."""
    probe = x[:2]
    replay.record(probe)
    most = int(memory_mb * 2**20 / max(1.0, replay.bytes / len(probe)))
    if most < 2:
        raise SlimError(f"Two images must fit into memory. Got memory_mb={memory_mb}. Raise sensitivity.memory_mb.")
    return x[:most], y[:most]


def _accuracy(output: Any, y: Tensor) -> float:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return float((output.float().argmax(1) == y).double().mean())


def _key(graph: ChannelGraph, scores: Scores, shares: tuple[float, ...], x: Tensor, bf16: bool) -> str:
    """A fingerprint of everything that the numbers depend on."""
    digest = hashlib.sha256(scores.values.tobytes())
    digest.update(repr((scores.criterion, shares, bf16, tuple(x.shape), float(x.double().sum()))).encode())
    for name, p in graph.model.named_parameters():
        digest.update(f"{name} {tuple(p.shape)} {float(p.detach().double().sum())!r}".encode())
    return digest.hexdigest()[:16]
