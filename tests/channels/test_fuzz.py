"""The laws of surgery on random networks: 40 here, 5,000 by `make fuzz` (the hypothesis profile says how many)."""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import slim
from tests.channels.laws import check_all, check_branches
from tests.channels.strategies import Network, networks

SHARDS = 4  # parts that run side by side; each draws its own networks


@pytest.mark.parametrize("shard", range(SHARDS))
def test_laws_hold_on_random_networks(shard: int) -> None:
    profile = settings()
    each = -(-profile.max_examples // SHARDS)

    # A seed per shard: a derandomized test would draw the same networks in each.
    @seed(shard)
    @settings(max_examples=each, derandomize=False, database=None)
    @given(
        network=networks(),
        share=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        residual=st.sampled_from(["group", "group", "select", "keep"]),
        grouped=st.sampled_from(["balance", "balance", "whole"]),
        fold=st.booleans(),
    )
    def holds(network: Network, share: float, residual: str, grouped: str, fold: bool) -> None:
        x = network.example()
        model = slim.fold(network.eval(), x) if fold and "computed" in repr(network) else network
        graph, plan = check_all(model, x, share, seed=shard, residual=residual, grouped=grouped)
        check_branches(model, graph, x, seed=shard)
        assert all(kept <= dense for dense, kept in plan.widths.values()) and len(graph) > 0

    holds()
