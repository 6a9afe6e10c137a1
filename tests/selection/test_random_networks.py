"""Whatever the network, what selection removes is a plan that the network can be rebuilt by."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slim
from slim.channels import count_macs
from slim.criteria import Scores
from slim.criteria.scores import scale_counts
from slim.errors import SlimError
from slim.selection import select_groups
from tests.channels.pieces import Einsum
from tests.channels.strategies import Network, networks


@settings(max_examples=25)
@given(
    network=networks(),
    seed=st.integers(0, 1000),
    ratio=st.sampled_from([0.2, 0.5, 0.8, 0.95]),
    residual=st.sampled_from(["group", "select", "keep"]),
    grouped=st.sampled_from(["balance", "balance", "whole"]),
    round_to=st.sampled_from([1, 1, 1, 2, 4]),
    strategy=st.sampled_from(["global", "marginal", "layer"]),
)
def test_selections_can_be_rebuilt(
    network: Network, seed: int, ratio: float, residual: str, grouped: str, round_to: int, strategy: str
) -> None:
    x = network.example()
    graph = slim.trace(network, x, residual=residual, grouped=grouped)
    everything = np.ones(len(graph), dtype=bool)
    values = np.random.default_rng(seed).random(len(graph))
    scores = Scores(values, everything, scale_counts(graph, everything), "drawn")
    try:
        found = select_groups(graph, scores, ratio=ratio, round_to=round_to, strategy=strategy)
    except SlimError as error:
        assert "Something must be removable" in str(error)
        return
    less = select_groups(graph, scores, ratio=ratio / 2, round_to=round_to, strategy=strategy)
    assert not (less.removed & ~found.removed).any()
    thin = slim.rebuild(network, graph.plan(found.removed))
    # torch.einsum multiplies, uncounted, where the axis it sums over has shrunk to one.
    if not any(isinstance(m, Einsum) and m.weight.shape[1] == 1 for m in thin.modules()):
        assert count_macs(thin, x) == graph.macs(found.removed)
    with torch.no_grad():
        thin.eval()(x)
