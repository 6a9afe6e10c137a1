"""Every layer says why what is left of it is left."""

from __future__ import annotations

import torch
from torch import nn

import slim
from slim.selection.kept import why_kept


def test_every_layer_of_the_plan_has_a_reason() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.01] * 7 + [1.0]))
        model[4].weight.fill_(2.0)
    graph = slim.trace(model, torch.zeros(1, 3, 8, 8))
    selection = slim.select_groups(graph, slim.score(graph, criterion="gamma"), ratio=0.5)
    found = why_kept(graph, selection)
    assert set(found) == set(graph.plan(selection.removed).widths)
    assert found == {"0": "the best one", "3": "all rank above the cut", "7": "is the model's output"}
