"""One network through the whole of surgery at 50%, and the law checked on it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import slim
from experiments.coverage.catalog import norms
from slim.channels import ChannelGraph
from slim.errors import SlimError
from slim.selection.reasons import as_lines, reasons

RATIO = 0.5
ENOUGH = 0.4  # of what was asked
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DOUBLE_BELOW = 2e8  # parameters; larger networks are compared in float32, for memory


class Doubles(TorchFunctionMode):
    """Where a forward asks for float32 by ``float()``, as flow networks do for their grids, it gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            func = Tensor.double
        return func(*args, **(kwargs or {}))


def trial(model: nn.Module, image: Tensor | tuple[Tensor, ...]) -> dict[str, Any]:
    """:func:`one_trial` of ``model``; where too little went, of what its report offers: folding, then whole blocks.

    Returns:
        As :func:`one_trial`; ``help`` says what was done, ``alone`` holds verdict, shares and reasons without it.
    """
    with Doubles():
        row = one_trial(model, image)
        alone = {"verdict": row["verdict"], "lost": lost(row), "why": row["why"]}
        if lost(row) < ENOUGH * RATIO and row.get("fold"):
            dtype = next(model.parameters()).dtype
            model = slim.fold(model, tree_map_only(Tensor, lambda t: t.to(dtype), image))
            row = one_trial(model, image) | {"help": "fold", "alone": alone}
        if lost(row) < ENOUGH * RATIO:
            blocks = one_trial(model, image, granularity="layer")
            if lost(blocks) > lost(row):
                row = blocks | {"help": "blocks", "alone": alone}
    return row


def lost(row: dict[str, Any]) -> float:
    """The larger share of MACs and parameters that went."""
    return max((1 - row[key][1] / row[key][0] for key in ("macs", "params") if key in row), default=0.0)


def one_trial(model: nn.Module, image: Tensor | tuple[Tensor, ...], granularity: str = "channel") -> dict[str, Any]:
    """Trace, rank, select, rebuild and mask ``model`` (eval mode) on ``image`` and compare.

    Returns:
        Plain data: counts, ratios, MACs, errors, seconds, and ``verdict``: ``ok``, ``short`` (fewer channels than
        asked for, the law holds), ``broken`` (the law does not hold) or ``nothing`` (no channel may go). ``why`` says
        what stays and what to do about it, for all that lost too little. ``seconds`` are the processor's.
    """
    size = sum(p.numel() for p in model.parameters())
    dtype = torch.float64 if size < DOUBLE_BELOW else torch.float32
    model = model.to(dtype)
    image = tuple(part.to(dtype) for part in image) if isinstance(image, tuple) else image.to(dtype)
    start = time.process_time()
    graph = slim.trace(model, image)
    traced = time.process_time()
    criterion = "gamma" if any(scale.weight for scale in graph.scales) else "l1"
    row: dict[str, Any] = {"parameters": size, "dtype": str(dtype).removeprefix("torch."), "criterion": criterion}
    first = image[0] if isinstance(image, tuple) else image
    row |= {"input": "x".join(map(str, first.shape)), "groups": len(graph), "prunable": int(graph.prunable.sum())}
    row["fold"] = any("slim.fold" in entry["reason"] for entry in reasons(graph))
    if not graph.prunable.any() and granularity == "channel":
        return row | {"verdict": "nothing", "seconds": traced - start, "why": why(graph)}
    try:
        scores = slim.score(graph, criterion=criterion)
        chosen = slim.select_groups(graph, scores, ratio=RATIO, granularity=granularity)
    except SlimError as error:
        return row | {"verdict": "nothing", "seconds": traced - start, "why": str(error)[:400]}
    plan = graph.plan(chosen.removed)
    thin = slim.rebuild(model, plan)
    seconds = time.process_time() - start
    masked = slim.mask(model, plan)

    errors, allowed, change = compare(model, masked, thin, image, dtype)
    before, after = graph.macs(), graph.macs(chosen.removed)
    exact = after == slim.channels.count_macs(thin, image) and before == slim.channels.count_macs(model, image)
    achieved = chosen.achieved["ratio"]
    row |= {"requested": RATIO, "achieved": achieved, "macs": [before, after], "macs exact": exact, "seconds": seconds}
    row |= {"params": [graph.params(), graph.params(chosen.removed)], "channels": channels_lost(graph, chosen.removed)}
    row |= {"depth": [graph.depth(), graph.depth(chosen.removed)]}
    row |= {"trace seconds": traced - start, "plan bytes": len(plan.to_json())}
    row |= {"error": errors, "allowed": allowed, "change": change}
    holds = all(errors[mode] <= allowed[mode] for mode in errors) and exact and bool(np.isfinite(change))
    # One channel per layer may be missing: floors and balance cannot always be met to the channel.
    slack = len(graph.spaces) / max(1, int(graph.prunable.sum()))
    verdict = "broken" if not holds else "short" if achieved < RATIO - slack else "ok"
    little = verdict != "ok" or lost(row) < ENOUGH * RATIO
    return row | {"verdict": verdict, "why": why(graph) if little else "; ".join(chosen.notes)[:300]}


def compare(
    dense: nn.Module, masked: nn.Module, thin: nn.Module, image: Tensor | tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, float], float]:
    """The gap between the masked and the thin network per mode, what is allowed, and what the removal changed."""
    errors, allowed, change = {}, {}, 0.0
    with torch.no_grad():
        before = outputs(dense, image)
        for mode in ("eval", "train"):
            for network in (masked, thin):
                # Only the norms: dropout and stochastic depth draw other numbers for other widths.
                for module in norms(network):
                    module.train(mode == "train")
            want, got = outputs(masked, image), outputs(thin, image)
            errors[mode] = relative_error(got, want)
            allowed[mode] = TOLERANCE[dtype]
            if errors[mode] > allowed[mode]:
                allowed[mode] = max(allowed[mode], chaos(masked, image, want))
            if mode == "eval":
                change = relative_error(want, before)
    return errors, allowed, change


def chaos(network: nn.Module, image: Tensor | tuple[Tensor, ...], want: list[Tensor]) -> float:
    """What noise in the last bits of the input does to the output ``want``.

    Batch statistics of two images can amplify rounding without bound; a gap below this is rounding.
    """
    generator = torch.Generator().manual_seed(1)

    def nudged(part: Tensor) -> Tensor:
        noise = torch.rand(part.shape, generator=generator, dtype=part.dtype) - 0.5
        return part * (1 + 8 * torch.finfo(part.dtype).eps * noise)

    return relative_error(
        outputs(network, tuple(map(nudged, image)) if isinstance(image, tuple) else nudged(image)), want
    )


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


def why(graph: ChannelGraph) -> str:
    """The largest reasons for which channels stay, each with what a user can do about it."""
    return " ".join(as_lines(reasons(graph)))[:600]
