"""slim.prune: the five lines in one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import slim
from slim.channels import count_macs, count_params
from slim.errors import SlimError
from tests.selection.networks import INPUTS, Residual


def test_it_is_trace_score_select_rebuild():
    torch.manual_seed(0)
    model = Residual()
    for p in model.parameters():
        nn.init.normal_(p)
    before = copy.deepcopy(model.state_dict())
    result = slim.prune(model, INPUTS, macs=0.5, round_to=2)
    graph = slim.trace(model, INPUTS)
    plan = slim.select(graph, slim.score(graph), macs=0.5, round_to=2)
    assert result.plan.hash == plan.hash
    assert result.report.macs == (count_macs(model, INPUTS), count_macs(result.model, INPUTS))
    assert result.report.params == (count_params(model), count_params(result.model))
    assert result.report.achieved["macs"] <= 0.5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    text = str(result.report)
    assert "FLOPs = 2 x MACs; input 1x3x8x8" in text
    assert "criterion gamma, macs=0.5" in text


def test_options_of_the_criterion_have_a_place_of_their_own():
    result = slim.prune(Residual(), INPUTS, criterion="random", criterion_options={"seed": 3}, ratio=0.3)
    again = slim.prune(Residual(), INPUTS, criterion="random", criterion_options={"seed": 3}, ratio=0.3)
    assert result.plan.hash == again.plan.hash


def test_notes_reach_the_report():
    result = slim.prune(Residual(), INPUTS, ratio=0.9, max_layer_ratio=0.5)
    assert "Requested ratio=0.9" in str(result.report)


def test_a_cut_needs_a_budget_or_ratios_of_single_layers():
    with pytest.raises(SlimError, match="budget must say how much goes"):
        slim.prune(Residual(), INPUTS)
    assert slim.prune(Residual(), INPUTS, overrides={"a.0.0": {"ratio": 0.5}}).report.widths["a.0.0"] == (12, 6)


def test_unknown_options_are_errors():
    with pytest.raises(SlimError, match="Did you mean ratio"):
        slim.prune(Residual(), INPUTS, ratoi=0.5)
    loader = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(SlimError, match=r"Got loader of type list. Pass criterion_options={'loader': ...}"):
        slim.prune(Residual(), INPUTS, ratio=0.5, criterion="taylor", loader=loader)
    with pytest.raises(SlimError, match=r"criterion_options={'loader': ...}"):
        slim.prune(Residual(), INPUTS, ratio=0.5, criterion="taylor")
    with pytest.raises(SlimError, match="criterion_options must be a Mapping"):
        slim.prune(Residual(), INPUTS, ratio=0.5, criterion_options=3)
    with pytest.raises(SlimError, match=r"recover must be a Mapping.*{'batches': loader}"):
        slim.prune(Residual(), INPUTS, ratio=0.5, recover=True)
    slim.prune(Residual(), INPUTS, ratio=0.5, criterion="taylor", criterion_options={"loader": loader})
    with pytest.raises(SlimError, match="without any"):
        slim.prune(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), INPUTS, ratio=0.5)
