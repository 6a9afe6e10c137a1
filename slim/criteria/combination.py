"""A weighted sum of criteria, each scaled to a common range first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slim.criteria.registry import Evidence, criterion
from slim.criteria.scores import score
from slim.errors import SlimError, expect

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

SCALES = ("rank", "mean")


@criterion("combination", reduce="sum")
def combination(
    graph: ChannelGraph,
    parts: Mapping[str, Any] | None = None,
    scale: str = "rank",
    loader: Iterable[Any] | None = None,
    batches: int = 8,
    seed: int = 0,
) -> Evidence:
    """Sum of weight * scaled score over the parts; a group is covered when every part covers it.

    Args:
        graph: The network's channels.
        parts: Criterion name to weight, or to ``{"weight": w, **its options}``.
        scale: ``rank``: a part's scores become ranks in (0, 1]. ``mean``: they are divided by their mean.
        loader: For the data-driven parts.
        batches: For the data-driven parts.
        seed: For the data-driven parts and ``random``.

    Raises:
        SlimError: No parts, a weight that is no number, or an unknown scale.
    """
    if not parts:
        raise SlimError("A combination needs parts. Got parts={}. Set criterion.parts={gamma: 1.0, l1: 0.5}.")
    expect("parts", parts, Mapping, "Set criterion.parts={gamma: 1.0, l1: 0.5}.")
    if scale not in SCALES:
        raise SlimError(f"scale must be one of {', '.join(SCALES)}. Got scale={scale!r}. Set criterion.scale.")
    total = np.zeros(len(graph))
    covered = np.ones(len(graph), dtype=bool)
    for name, part in parts.items():
        options = dict(part) if isinstance(part, Mapping) else {"weight": part}
        weight = options.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not np.isfinite(weight):
            raise SlimError(f"A weight must be a number. Got weight={weight!r} (part {name}). Change criterion.parts.")
        shared = {"loader": loader, "batches": batches, "seed": seed}
        scores = score(graph, name, **{**_accepted(name, shared), **options})
        total += weight * _scaled(scores.values, scores.covered, scale)
        covered &= scores.covered
    yield np.flatnonzero(covered), total[covered]


def _accepted(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Of ``options``, those that the criterion has."""
    import inspect

    from slim.criteria.registry import find

    known = inspect.signature(find(name).rank).parameters
    return {k: v for k, v in options.items() if k in known}


def _scaled(values: npt.NDArray[np.float64], covered: npt.NDArray[np.bool_], scale: str) -> npt.NDArray[np.float64]:
    result = np.zeros_like(values)
    seen = values[covered]
    if scale == "mean":
        mean = np.abs(seen).mean()
        result[covered] = seen / mean if mean > 0 else seen
    else:
        # Equal scores share a rank, so that their order is left to the other parts.
        _, rank = np.unique(seen, return_inverse=True)
        result[covered] = (rank.reshape(-1) + 1) / (rank.max() + 1)
    return result
