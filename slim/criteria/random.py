"""Random scores, a control for comparisons (Mittal et al. 2018, arXiv:1801.10447)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slim.criteria.registry import Evidence, criterion
from slim.errors import expect_whole

if TYPE_CHECKING:
    from slim.channels import ChannelGraph


@criterion("random")
def random(graph: ChannelGraph, seed: int = 0) -> Evidence:
    """Uniform in (0, 1), the same on every machine for one ``seed`` and one network (PCG64's stream is stable)."""
    expect_whole("seed", seed, 0, "Set criterion.seed.")
    yield np.arange(len(graph)), np.random.Generator(np.random.PCG64(seed)).random(len(graph))
