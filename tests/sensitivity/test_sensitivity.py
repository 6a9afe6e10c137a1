"""Sensitivity: equal to masking and evaluating in full, resumable, and it leaves the model alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim import sensitivity
from slim.errors import SlimError
from slim.selection.layerwise import layerwise_removals
from slim.sensitivity.figures import figure
from slim.sensitivity.forward_cache import ForwardCache, zeroed_inputs
from slim.sensitivity.measure import _batch_statistics
from tests.selection.networks import INPUTS, NETWORKS, Plain, network


def held_out(count=64):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(32, 3, 8, 8, generator=generator), torch.randint(0, 4, (32,), generator=generator))
        for _ in range(count // 32)
    ]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_replayed_and_silenced_is_masked_and_run_in_full(name):
    model, graph = network(name)
    model.eval()
    x = torch.cat([b[0] for b in held_out()])
    scores = slim.score(graph, "l1" if name == "plain" else "gamma")
    before = copy.deepcopy(model.state_dict())
    skipped = 0
    with ForwardCache(model) as cache, torch.no_grad():
        whole = cache.record(x)
        for masks in layerwise_removals(graph, scores, (0.5,)).values():
            with zeroed_inputs(graph, masks[0]) as readers:
                first = min(cache.first[r] for r in readers)
                mine = cache.run_from(first, x)
                skipped += first
            full = slim.mask(model, graph.plan(masks[0]))
            for layer in full.modules():
                layer.__dict__.pop("forward", None)  # the twin was copied with our answers in place
            assert torch.allclose(mine, full(x), atol=1e-4)
        assert torch.equal(cache.run_from(0, x), whole)
    assert skipped > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("forward" in vars(m) for m in model.modules())


def test_outputs_that_are_written_over_are_remembered_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    x = torch.randn(4, 3, 8, 8)
    with ForwardCache(model) as cache:
        whole = cache.record(x)
        assert torch.equal(cache.run_from(2, x), whole)
        assert torch.equal(cache.run_from(2, x), whole)


def test_what_is_remembered_survives_being_written_over_again_and_again():
    """An operation in place that changes its own result shows what a second write on the first leaves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(inplace=True), nn.Conv2d(4, 2, 3))
    x = torch.randn(4, 3, 8, 8)
    with ForwardCache(model) as cache:
        whole = cache.record(x)
        for _ in range(3):
            assert torch.equal(cache.run_from(1, x), whole)


def test_a_drop_of_exactly_what_may_be_lost_is_allowed():
    for whole, left, drop in ((0.9, 0.88, 0.02), (0.9, 0.85, 0.05), (0.7, 0.6, 0.1)):
        found = sensitivity.Sensitivity((0.5,), whole, 100, "", {"layer": [left]})
        assert found.to_caps(max_drop=drop) == {"layer": {"max_layer_ratio": 0.5}}
        assert found.to_caps(max_drop=drop - 0.001) == {"layer": {"max_layer_ratio": 0.0}}


def test_statistics_are_the_batch_s_own_and_leave_no_trace():
    norm = nn.BatchNorm1d(2).eval()
    before = copy.deepcopy(norm.state_dict())
    with _batch_statistics(norm):
        out = norm(torch.randn(100, 2) * 5 + 3)
    assert out.mean().abs() < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    assert norm.track_running_stats


def test_the_analysis_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model, graph = network("residual")
    path = tmp_path / "sensitivity.csv"
    whole = sensitivity.measure(graph, held_out(), shares=(0.25, 0.5), path=path)
    text = path.read_text()
    lines = text.splitlines()
    path.write_text("\n".join(lines[:5]) + "\n")  # one layer whole, the second cut in half
    calls = []
    run = ForwardCache.run_from
    monkeypatch.setattr(ForwardCache, "run_from", lambda self, *a: calls.append(1) or run(self, *a))
    again = sensitivity.measure(graph, held_out(), shares=(0.25, 0.5), path=path)
    assert again.accuracy == whole.accuracy
    assert len(calls) == 2 * (len(whole.accuracy) - 1)
    assert path.read_text() == text
    with pytest.raises(SlimError, match="only by the same analysis"):
        sensitivity.measure(graph, held_out(), shares=(0.25, 0.6), path=path)
    other = copy.deepcopy(model)
    other.head.weight.data.mul_(2)  # the ranking and the images stay the same
    with pytest.raises(SlimError, match="only by the same analysis"):
        sensitivity.measure(slim.trace(other, INPUTS), held_out(), shares=(0.25, 0.5), path=path)


def test_caps_keep_the_selection_out_of_what_hurts():
    _, graph = network("residual")
    found = sensitivity.measure(graph, held_out(), shares=(0.25, 0.5))
    assert set(found.accuracy) == {s.name for s in graph.spaces if graph.prunable[s.groups].any()}
    found.accuracy["a.0.0"] = [found.whole - 0.5] * 2
    caps = found.to_caps(max_drop=0.1)
    assert caps["a.0.0"] == {"max_layer_ratio": 0.0}
    removed = slim.select_groups(graph, slim.score(graph, "gamma"), ratio=0.4, overrides=caps).removed
    space = next(s for s in graph.spaces if s.name == "a.0.0")
    assert not removed[space.groups].any()


def test_bfloat16_sees_what_was_silenced():
    """Autocast must not go on with weights that it cast before."""
    torch.manual_seed(0)
    parts = [[nn.Conv2d(cin, 16, 3), nn.BatchNorm2d(16), nn.ReLU()] for cin in (3, 16)]
    model = nn.Sequential(*(m for part in parts for m in part), nn.Flatten(), nn.Linear(256, 4))
    graph = slim.trace(model, torch.zeros(1, 3, 8, 8))
    x = torch.cat([b[0] for b in held_out(256)])
    with torch.no_grad(), _batch_statistics(model.eval()):
        y = model(x).argmax(1)
    exact, rough = (sensitivity.measure(graph, [(x, y)], shares=(0.5,), bf16=bf16) for bf16 in (False, True))
    assert exact.whole == 1.0 and rough.whole > 0.95
    lost = {name: 1 - row[0] for name, row in exact.accuracy.items()}
    assert max(lost.values()) > 0.1
    assert all(abs(1 - rough.accuracy[name][0] - lost[name]) < 0.06 for name in lost)


def test_shares_that_take_the_same_channels_are_measured_once(monkeypatch):
    _, graph = network("residual")
    calls = []
    run = ForwardCache.run_from
    monkeypatch.setattr(ForwardCache, "run_from", lambda self, *a: calls.append(1) or run(self, *a))
    found = sensitivity.measure(graph, held_out(), shares=(0.001, 0.5, 0.501))
    assert len(calls) == len(found.accuracy)
    assert all(row[0] == found.whole and row[1] == row[2] for row in found.accuracy.values())


def test_fewer_images_when_memory_is_short():
    _, graph = network("residual")
    assert sensitivity.measure(graph, held_out(), shares=(0.5,), memory_mb=1).images < 64
    assert sensitivity.measure(graph, held_out(), shares=(0.5,)).images == 64


def test_the_picture_can_be_drawn():
    _, graph = network("residual")
    fig = figure(sensitivity.measure(graph, held_out(), shares=(0.25, 0.5)), "residual")
    fig.canvas.draw()
    assert fig.axes[0].has_data()


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        ([], {}, "empty loader"),
        ([torch.zeros(2, 3, 8, 8)], {}, "pairs"),
        ([([torch.zeros(3, 8, 8)], [{"labels": 1}])], {}, "Got list, list"),
        (None, {"shares": (0.5, 0.2)}, "ascending"),
        (None, {"shares": (0.5, 1.0)}, "ascending"),
        (None, {"memory_mb": 0}, "memory"),
        *((None, {"images": images}, "images must be") for images in (0, -1, 1.5)),
    ],
)
def test_bad_requests(loader, options, message):
    model = Plain()
    graph = slim.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(SlimError, match=message):
        sensitivity.measure(graph, held_out() if loader is None else loader, **options)
    assert model.training
    assert np.isfinite(sensitivity.measure(graph, held_out(), shares=(0.5,)).whole)
