"""One network through the whole of surgery at 50%, and the law checked on it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import slim
from experiments.coverage.catalog import norms
from slim.channels import ChannelGraph
from slim.errors import SlimError

RATIO = 0.5
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DOUBLE_BELOW = 2e8  # parameters; larger networks are compared in float32, for memory


def trial(model: nn.Module, image: Tensor | tuple[Tensor, ...]) -> dict[str, Any]:
    """Trace, rank, select, rebuild and mask ``model`` (eval mode) on ``image`` and compare.

    Returns:
        Plain data: counts, ratios, MACs, errors, seconds, and ``verdict``: ``ok``, ``short`` (fewer channels than
        asked for, the law holds; ``why`` says what is pinned), ``broken`` (the law does not hold) or ``nothing``
        (no channel may go).
    """
    size = sum(p.numel() for p in model.parameters())
    # A flow network makes its grids in float32, whatever its weights are.
    dtype = torch.float64 if size < DOUBLE_BELOW and not isinstance(image, tuple) else torch.float32
    model = model.to(dtype)
    image = tuple(part.to(dtype) for part in image) if isinstance(image, tuple) else image.to(dtype)
    start = time.perf_counter()
    graph = slim.trace(model, image)
    traced = time.perf_counter()
    criterion = "gamma" if any(scale.weight for scale in graph.scales) else "l1"
    row: dict[str, Any] = {"parameters": size, "dtype": str(dtype).removeprefix("torch."), "criterion": criterion}
    first = image[0] if isinstance(image, tuple) else image
    row |= {"input": "x".join(map(str, first.shape)), "groups": len(graph), "prunable": int(graph.prunable.sum())}
    if not graph.prunable.any():
        return row | {"verdict": "nothing", "seconds": traced - start, "why": reasons(graph)}
    try:
        chosen = slim.select_groups(graph, slim.score(graph, criterion=criterion), ratio=RATIO)
    except SlimError as error:
        return row | {"verdict": "nothing", "seconds": traced - start, "why": str(error)[:200]}
    plan = graph.plan(chosen.removed)
    thin = slim.rebuild(model, plan)
    seconds = time.perf_counter() - start
    masked = slim.mask(model, plan)

    errors, allowed, change = {}, {}, 0.0
    with torch.no_grad():
        dense = outputs(model, image)
        for mode in ("eval", "train"):
            for network in (masked, thin):
                # Only the norms: dropout and stochastic depth draw other numbers for other widths.
                for module in norms(network):
                    module.train(mode == "train")
            want, got = outputs(masked, image), outputs(thin, image)
            errors[mode] = relative_error(got, want)
            allowed[mode] = TOLERANCE[dtype]
            if errors[mode] > allowed[mode]:
                # Batch statistics of two images can amplify rounding without bound: compare with what the last
                # bit of the input does to the same network.
                factor = 1 + 4 * torch.finfo(dtype).eps
                nudged = outputs(
                    masked, tuple(p * factor for p in image) if isinstance(image, tuple) else image * factor
                )
                allowed[mode] = max(allowed[mode], relative_error(nudged, want))
            if mode == "eval":
                change = relative_error(want, dense)
    before, after = graph.macs(), graph.macs(chosen.removed)
    exact = after == slim.channels.count_macs(thin, image) and before == slim.channels.count_macs(model, image)
    achieved = chosen.achieved["ratio"]
    row |= {"requested": RATIO, "achieved": achieved, "macs": [before, after], "macs exact": exact, "seconds": seconds}
    row |= {"params": [graph.params(), graph.params(chosen.removed)], "channels": channels_lost(graph, chosen.removed)}
    row |= {"trace seconds": traced - start, "error": errors, "change": change, "plan bytes": len(plan.to_json())}
    holds = all(errors[mode] <= allowed[mode] for mode in errors) and exact and bool(np.isfinite(change))
    # One channel per layer may be missing: floors and balance cannot always be met to the channel.
    slack = len(graph.spaces) / max(1, int(graph.prunable.sum()))
    verdict = "broken" if not holds else "short" if achieved < RATIO - slack else "ok"
    return row | {
        "verdict": verdict,
        "why": "; ".join(chosen.notes)[:300] or ("" if verdict == "ok" else reasons(graph)),
    }


def channels_lost(graph: ChannelGraph, removed: np.ndarray) -> float:
    """The share of all channel groups, removable or not, that went."""
    return float(removed.sum() / max(1, len(graph)))


def outputs(model: nn.Module, image: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Every floating tensor that the network returns, whatever holds it."""
    result = model(*image) if isinstance(image, tuple) else model(image)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def relative_error(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest difference over the largest value, over all outputs; infinite when shapes or finiteness differ."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or not torch.isfinite(b).all():
            return float("inf")
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)))
    return worst


def reasons(graph: ChannelGraph) -> str:
    """The commonest reasons for which groups may not go."""
    kept = np.flatnonzero(~graph.prunable)
    counts: dict[str, int] = {}
    for index in kept[:: max(1, len(kept) // 500)].tolist():
        reason = str(graph.groups[index].reason)
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(sorted(counts, key=lambda reason: -counts[reason])[:2])[:240]
