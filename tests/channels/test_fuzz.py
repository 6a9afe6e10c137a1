"""The laws of surgery on random networks: 100 here, 5,000 by `make fuzz` (the hypothesis profile says how many)."""

from __future__ import annotations

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.channels.laws import check_all
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
    )
    def holds(network: Network, share: float, residual: str, grouped: str) -> None:
        graph, plan = check_all(network, network.example(), share, seed=shard, residual=residual, grouped=grouped)
        assert all(kept <= dense for dense, kept in plan.widths.values()) and len(graph) > 0

    holds()
