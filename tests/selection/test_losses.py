"""Reports say what went, and why the rest stayed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import slim
from slim.selection import losses


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 8, 1)
        self.bn, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.bn(self.head(self.norm(self.stem(x)))))


def test_reasons_are_the_largest_first_and_tell_what_to_do() -> None:
    graph = slim.trace(Net(), torch.randn(1, 3, 8, 8))
    chosen = slim.select_groups(graph, slim.score(graph), ratio=0.5)
    data = losses(graph, chosen)
    assert json.loads(json.dumps(data)) == data
    shares = [entry["share"] for entry in data["stayed"]]
    assert shares == sorted(shares, reverse=True) and len(shares) == 3
    assert "group_norm" in data["stayed"][0]["reason"] and data["stayed"][0]["where"] == "norm"
    assert "BatchNorm" in data["stayed"][0]["advice"]
    assert sum(shares) == pytest.approx(float((~graph.prunable).mean()))
    assert data["channels"] == float(chosen.removed.mean())
    assert data["params"] == 1 - graph.params(chosen.removed) / graph.params()


def test_a_report_ends_with_them() -> None:
    report = slim.prune(Net(), torch.randn(1, 3, 8, 8), ratio=0.5).report
    assert "must stay: native_group_norm takes statistics" in str(report) or "group_norm takes" in str(report)
