"""The controller: what it promises about zeros, budgets, floors and surgery during training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.channels import mask, rebuild
from slim.errors import SlimError
from slim.sparsity import build
from tests.sparsity.networks import Residual, chain, gammas, graph_of, grouped, sgd, started, steps

TOTAL = 40
PHASE = {"start": 0.1, "end": 0.8, "window": 0.15, "rankings": 12, "memory": 0.05}


def trained(make, budget, *, until=TOTAL, **options):
    net = started(make)
    penalty = build("target", **{**PHASE, **budget, **options})
    penalty.attach(net, graph_of(net), TOTAL)
    steps(net, sgd(net), penalty, 0, until)
    return net, penalty


def doubled(make):
    """In double: a thinner layer's rounding differs, and single precision lets a ReLU make much of it."""

    def made():
        net = make().double()
        net.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return net

    return made


def betas(net):
    return torch.cat([m.bias.detach() for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)])


@pytest.mark.parametrize(
    ("make", "criterion", "ratio"),
    [(chain, "taylor", 0.25), (chain, "gamma", 0.5), (Residual, "taylor", 0.75), (Residual, "gamma", 0.25)],
)
def test_the_ratio_is_at_exactly_zero_when_the_phase_ends(make, criterion, ratio):
    net, penalty = trained(make, {"ratio": ratio}, criterion=criterion)
    zero = gammas(net) == 0
    graph = graph_of(net)
    largest = max(sum((s.groups == g).sum() for s in graph.scales) for g in range(len(graph)))
    assert abs(int(zero.sum()) - ratio * len(zero)) <= largest
    assert (betas(net)[zero] == 0).all()
    assert penalty.summary()["ready"] == 1.0
    assert penalty.value() == 0


@pytest.mark.parametrize(("make", "macs"), [(chain, 0.3), (Residual, 0.7)])
def test_the_cut_meets_the_budget_of_macs_and_changes_nothing(make, macs):
    net, penalty = trained(make, {"macs": macs})
    graph = graph_of(net)
    plan = graph.plan(penalty.removed())
    x = torch.randn(4, 3, 8, 8)
    net.eval()
    for other in (mask(net, plan), rebuild(net, plan)):
        torch.testing.assert_close(other.eval()(x), net(x), rtol=1e-4, atol=1e-5)
    assert graph.macs(penalty.removed()) <= macs * graph.macs()
    assert penalty.summary()["macs"] == graph.macs(penalty.removed()) / graph.macs()


@pytest.mark.parametrize("budget", [{"ratio": 0.25}, {"ratio": 0.5}, {"macs": 0.7}, {"params": 0.7}])
def test_the_cut_takes_what_is_at_zero_before_channels_without_a_scale(budget):
    """They were placed among all scales, those at zero included: living ones went, and channels at zero stayed."""

    def with_a_wide_head():
        head = (nn.Conv2d(20, 128, 1), nn.ReLU(), nn.Conv2d(128, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*chain()[:6], *head)

    net, penalty = trained(with_a_wide_head, budget)
    graph = graph_of(net)
    scores = slim.score(graph)
    assert "have no scale" in scores.notes[0], "they are a good part of this network"
    selection = slim.select_groups(graph, scores, max_layer_ratio=0.9, **budget)
    assert np.array_equal(selection.removed, penalty.removed())
    thin, x = rebuild(net, slim.select(graph, scores, max_layer_ratio=0.9, **budget)), torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(thin.eval()(x), net.eval()(x), rtol=1e-4, atol=1e-5)


def test_zeros_stay_zero_and_untouched_channels_feel_nothing():
    net, penalty = trained(chain, {"ratio": 0.5}, until=20)
    zero = gammas(net) == 0
    assert zero.any()
    steps(net, sgd(net), penalty, 20, TOTAL)
    assert (gammas(net)[zero] == 0).all()
    assert (torch.cat([net[1].weight.grad, net[4].weight.grad])[zero] == 0).all()

    net, plain = started(chain), started(chain)
    penalty = build("target", ratio=0.5, **{**PHASE, "start": 0.5})
    penalty.attach(net, graph_of(net), TOTAL)
    steps(net, sgd(net), penalty, 0, 20)
    steps(plain, sgd(plain), None, 0, 20)
    assert torch.equal(gammas(net), gammas(plain))


def test_the_score_is_the_joint_effect_of_a_group():
    net = started(Residual)
    graph = graph_of(net)
    penalty = build("target", ratio=0.5, start=0.5, end=1.0, memory=0.0)
    penalty.attach(net, graph, TOTAL)
    torch.nn.functional.cross_entropy(net(torch.randn(4, 3, 8, 8)), torch.arange(4) % 2).backward()
    expected = np.zeros(len(graph))
    for scale in graph.scales:
        for name in (scale.weight, scale.bias):
            p = net.get_parameter(name)
            np.add.at(expected, scale.groups, (p.detach() * p.grad).numpy())
    penalty.before_step(0.1)
    found, first = penalty.state_dict()["score"].numpy(), 0
    for scale in graph.scales:
        joint = expected[scale.groups] ** 2
        np.testing.assert_allclose(found[first : first + len(joint)], joint, rtol=1e-4, atol=1e-12)
        first += len(joint)
    assert len(np.unique(np.concatenate([s.groups for s in graph.scales]))) < first  # some groups have several scales


def test_the_score_of_a_network_in_half_precision_is_that_of_single():
    scores = []
    for dtype in (torch.float32, torch.float16):
        net = started(Residual)
        graph = graph_of(net)
        net.to(dtype)
        for parameter in net.parameters():
            parameter.grad = (1e-4 * torch.arange(1, parameter.numel() + 1)).view_as(parameter).to(dtype)
        penalty = build("target", ratio=0.5, memory=0.0)
        penalty.attach(net, graph, TOTAL)
        penalty.before_step(0.1)
        scores.append(penalty.state_dict()["score"])
    torch.testing.assert_close(*scores, rtol=0.05, atol=0)


@pytest.mark.parametrize("criterion", ["taylor", "gamma"])
@pytest.mark.parametrize(
    ("budget", "shared"), [({"ratio": 0.5}, True), ({"macs": 0.8}, False), ({"params": 0.8}, False)]
)
def test_a_group_counts_once_and_for_a_ratio_per_scale(criterion, budget, shared):
    """A group's score is what removing it costs, divided among its scales where the budget counts scales."""
    net = started(Residual)
    graph = graph_of(net)
    penalty = build("target", **budget, start=0.5, end=1.0, memory=0.0, balance=0.0, criterion=criterion)
    penalty.attach(net, graph, TOTAL)
    torch.nn.functional.cross_entropy(net(torch.randn(4, 3, 8, 8)), torch.arange(4) % 2).backward()
    effect, gammas_of, count = np.zeros(len(graph)), np.zeros(len(graph)), np.zeros(len(graph))
    for scale in graph.scales:
        weight = net.get_parameter(scale.weight)
        np.add.at(gammas_of, scale.groups, weight.detach().abs().numpy())
        np.add.at(count, scale.groups, 1)
        for p in (weight, net.get_parameter(scale.bias)):
            np.add.at(effect, scale.groups, (p.detach() * p.grad).numpy())
    penalty.before_step(0.1)
    expected = effect**2 if criterion == "taylor" else gammas_of
    own = count > 0
    expected = expected[own] / count[own] if shared else expected[own]
    assert count.max() > 1
    np.testing.assert_allclose(penalty._scores()[own], expected, rtol=1e-4, atol=1e-12)


def test_ranked_again_a_channel_goes_on_shrinking():
    """The countdown begins when a channel is first selected; a later ranking does not begin it anew."""
    net = started(chain)
    # So steep that nearly all of the budget is due at the first ranking; ranked at every step.
    penalty = build(
        "target", ratio=0.5, start=0.0, end=1.0, power=200.0, window=0.25, rankings=TOTAL, criterion="gamma"
    )
    penalty.attach(net, graph_of(net), TOTAL)
    for _ in range(TOTAL // 4 + 2):
        penalty.before_step(0.1)
        penalty.after_step(0.1)
    assert (gammas(net) == 0).float().mean() > 0.45


def test_zeros_do_not_count_in_their_layers_mean():
    """So scores relative to a layer are the same before and after what is zero leaves the network."""
    net, penalty = trained(chain, {"ratio": 0.5}, until=TOTAL - 4, balance=1.0)
    graph = graph_of(net)
    gone = penalty.removed()
    assert gone.any()
    before = {scale.weight: penalty._scores()[scale.groups] for scale in graph.scales}
    rebuild(net, graph.plan(gone), in_place=True)
    thin = graph_of(net)
    penalty.resize(net, thin)
    for scale in thin.scales:
        stays = ~gone[next(s.groups for s in graph.scales if s.weight == scale.weight)]
        np.testing.assert_allclose(penalty._scores()[scale.groups], before[scale.weight][stays], rtol=1e-5)


def test_any_balance_ranks_before_there_are_scores():
    for balance in (0.5, 1.0, 2.0):
        net = started(chain)
        penalty = build("target", ratio=0.5, balance=balance)
        penalty.attach(net, graph_of(net), TOTAL)
        assert np.isfinite(penalty._scores()).all()


def test_the_power_says_how_early_channels_go():
    options = {"start": 0.0, "end": 1.0, "window": 0.025, "rankings": TOTAL}
    for power in (1.0, 2.0, 3.0):
        net, _ = trained(chain, {"ratio": 0.75}, until=TOTAL // 2, power=power, **options)
        gone = float((gammas(net) == 0).float().mean())
        assert gone == pytest.approx(0.75 * (1 - 0.5**power), abs=0.06)


def test_grouped_convolutions_can_be_cut_at_any_moment():
    net = started(grouped)
    graph, penalty, optimizer = graph_of(net), build("target", ratio=0.5, **PHASE), sgd(net)
    penalty.attach(net, graph, TOTAL)
    x, shares = torch.randn(2, 3, 8, 8), []
    for first in range(0, TOTAL, 4):
        steps(net, optimizer, penalty, first, first + 4)
        gone = penalty.removed()
        thin = rebuild(net, graph.plan(gone)).eval()
        torch.testing.assert_close(thin(x), net.eval()(x), rtol=1e-4, atol=1e-5)
        shares.append(gone.mean())
    assert shares == sorted(shares)
    assert shares[-1] > 0.25


def test_a_channel_takes_a_straight_line_to_zero():
    net = started(chain)
    penalty = build("target", ratio=0.5, start=0.0, end=0.5, window=0.5, rankings=2)
    penalty.attach(net, graph_of(net), 20)
    before, seen = gammas(net), []
    for _ in range(12):
        penalty.before_step(0.1)
        penalty.after_step(0.1)
        seen.append(gammas(net))
    shrinking = seen[-1] == 0
    expected = torch.linspace(0.9, 0, 10)[:, None] * before[shrinking]
    torch.testing.assert_close(torch.stack(seen)[:10, shrinking], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(seen[-1][~shrinking], before[~shrinking])


def test_no_layer_loses_more_than_its_cap():
    net, _ = trained(chain, {"ratio": 0.7}, max_layer_ratio=0.75, balance=0.0)
    assert int((net[1].weight != 0).sum()) >= 3
    assert int((net[4].weight != 0).sum()) >= 5


@pytest.mark.parametrize(("ratio", "reached"), [(0.25, True), (0.5, True), (0.75, False)])
def test_scales_that_train_make_up_for_frozen_ones(ratio, reached):
    """A ratio is of all 32 scales; 18 of the 20 that train may go."""
    net = started(chain)
    net[1].weight.requires_grad_(False)
    penalty = build("target", **PHASE, ratio=ratio)
    penalty.attach(net, graph_of(net), TOTAL)
    assert penalty.forecast([0.1] * TOTAL, 0.9).reachable == reached
    steps(net, sgd(net), penalty, 0, TOTAL)
    assert int((net[4].weight == 0).sum()) == (32 * ratio if reached else 18)
    assert bool((net[1].weight != 0).all())


def test_a_budget_out_of_reach_is_said_before_training():
    net = started(chain)
    penalty = build("target", ratio=0.95, max_layer_ratio=0.5)
    penalty.attach(net, graph_of(net), TOTAL)
    forecast = penalty.forecast([0.1] * TOTAL, 0.9)
    assert not forecast.reachable
    assert "Floors" in forecast.line
    with pytest.raises(SlimError):
        build("target", macs=0.01, max_layer_ratio=0.5).attach(net, graph_of(net), TOTAL)


def test_channels_without_scales_are_named_where_a_budget_needs_them():
    wide = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 1))
    without = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1), nn.GroupNorm(1, 4))
    for net, start in ((wide, "The budget must be within reach"), (without, "Something must be removable")):
        law = build("target", macs=0.3, norms="all")
        with pytest.raises(
            SlimError, match=rf"{start}.* 64 groups that may go have no score \(penalty=target: no scale"
        ):
            law.attach(net, slim.trace(net, torch.zeros(1, 3, 4, 4)), 10)


@pytest.mark.parametrize(("falls", "late"), [((1 / 3, 2 / 3), True), ((1 / 2, 3 / 4), False), ((0.8, 0.9), False)])
def test_channels_that_go_after_the_learning_rate_are_said_before_training(falls: tuple[float, float], late: bool):
    net = started(chain)
    penalty = build("target", ratio=0.5)
    penalty.attach(net, graph_of(net), 300)
    lrs = [0.1 * 0.1 ** sum(step >= share * 300 for share in falls) for step in range(300)]
    line = penalty.forecast(lrs, 0.9).line
    assert ("is then 0.01 of its highest" in line) == late
    assert ("Set penalty.end to 0.33" in line) == late
    sooner = build("target", ratio=0.5, start=0.1, end=0.33)
    sooner.attach(net, graph_of(net), 300)
    assert "highest" not in sooner.forecast(lrs, 0.9).line


@pytest.mark.parametrize(
    ("make", "budget"),
    [(chain, {"ratio": 0.6}), (Residual, {"ratio": 0.6}), (Residual, {"macs": 0.3}), (chain, {"params": 0.4})],
)
def test_slimming_while_training_is_the_same_as_one_late_cut(make, budget):
    make = doubled(make)
    # Per MAC saved, a channel of the thin network is worth something else than the same one of the dense network.
    budget = {**budget, "select": {"strategy": "global"}}
    late, late_penalty = trained(make, budget)
    late = rebuild(late, graph_of(late).plan(late_penalty.removed()))

    net = started(make)
    penalty, optimizer = build("target", **{**PHASE, **budget}), sgd(net)
    graph = graph_of(net)
    penalty.attach(net, graph, TOTAL)
    sizes = []
    for first in range(0, TOTAL, 8):
        steps(net, optimizer, penalty, first, first + 8)
        gone = penalty.removed()
        if gone.any():
            rebuild(net, graph.plan(gone), in_place=True, optimizer=optimizer)
            graph = graph_of(net)
            penalty.resize(net, graph)
        sizes.append(len(gammas(net)))
    assert len(set(sizes)) > 2
    assert penalty.summary() == pytest.approx(late_penalty.summary())
    for (name, ours), theirs in zip(net.state_dict().items(), late.state_dict().values(), strict=True):
        assert ours.shape == theirs.shape, name
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("ratio", [0.7, 0.9])
def test_slimming_down_to_the_floors_is_no_error(ratio):
    """More is asked than floors allow, which is said before; when all has gone that can, the rest trains on."""
    net = started(chain)
    penalty, optimizer = build("target", ratio=ratio, **PHASE, max_layer_ratio=0.5), sgd(net)
    graph = graph_of(net)
    penalty.attach(net, graph, TOTAL)
    for first in range(0, TOTAL, 4):
        steps(net, optimizer, penalty, first, first + 4)
        if penalty.removed().any():
            rebuild(net, graph.plan(penalty.removed()), in_place=True, optimizer=optimizer)
            graph = graph_of(net)
            penalty.resize(net, graph)
    assert penalty.summary()["ready"] == 1 and penalty.summary()["zero"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("select", "least"),
    [
        ({"overrides": {"LAYER": {"round_to": 1}}}, 0.5),  # the cap of all layers holds there, too
        ({"overrides": {"LAYER": {"max_layer_ratio": 0.25}}}, 0.75),
        ({"max_layer_ratio": 0.25}, 0.75),
        ({"overrides": {"LAYER": {"ratio": 0.25}}}, 0.75),
    ],
)
@pytest.mark.parametrize("every", [TOTAL, 4])
def test_limits_of_single_layers_are_of_the_dense_network(select, least, every):
    """However often the network is cut meanwhile, and where a layer has become too narrow to lose any more."""
    net = started(chain)
    norm = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.weight.data.mul_(0.01)  # that layer would go first
    graph = graph_of(net)
    layer, width = graph.spaces[graph.space_of[graph.scales[0].groups[0]]].name, norm.num_features
    select = {key: {layer: value["LAYER"]} if key == "overrides" else value for key, value in select.items()}
    penalty, optimizer = (
        build("target", ratio=0.5, **PHASE, criterion="gamma", max_layer_ratio=0.5, select=select),
        sgd(net),
    )
    penalty.attach(net, graph, TOTAL)
    for first in range(0, TOTAL, every):
        steps(net, optimizer, penalty, first, first + every)
        rebuild(net, graph.plan(penalty.removed()), in_place=True, optimizer=optimizer)
        graph = graph_of(net)
        penalty.resize(net, graph)
    assert norm.num_features == int(np.ceil(least * width))


def test_a_layer_with_a_ratio_of_its_own_goes_by_the_schedule():
    """Its share is due little by little like the rest, and whole at the end."""
    net = started(chain)
    graph = graph_of(net)
    norm = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    layer = graph.spaces[graph.space_of[graph.scales[0].groups[0]]].name
    options = {"power": 1.0, "criterion": "gamma", "select": {"overrides": {layer: {"ratio": 0.5}}}}
    penalty, optimizer = build("target", ratio=0.5, **PHASE, **options), sgd(net)
    penalty.attach(net, graph, TOTAL)
    gone = []
    for step in range(TOTAL):
        steps(net, optimizer, penalty, step, step + 1)
        gone.append(int((norm.weight == 0).sum()))
    half = norm.num_features // 2
    assert gone[-1] == half and len({count for count in gone if 0 < count < half}) > 1, gone


def test_resumes_on_a_network_that_was_slimmed():
    def begin():
        net = started(chain)
        penalty, optimizer = build("target", ratio=0.6, **PHASE), sgd(net)
        graph = graph_of(net)
        penalty.attach(net, graph, TOTAL)
        steps(net, optimizer, penalty, 0, 24)
        rebuild(net, graph.plan(penalty.removed()), in_place=True, optimizer=optimizer)
        penalty.resize(net, graph_of(net))
        return net, optimizer, penalty

    net, optimizer, penalty = begin()
    state = penalty.state_dict()
    steps(net, optimizer, penalty, 24, TOTAL)
    again, optimizer, _ = begin()
    penalty = build("target", ratio=0.6, **PHASE)
    penalty.load_state_dict(state)
    penalty.attach(again, graph_of(again), TOTAL)
    steps(again, optimizer, penalty, 24, TOTAL)
    assert torch.equal(gammas(net), gammas(again))


def test_a_window_may_fill_the_time_to_the_end():
    """0.1 + 0.2 is a little more than 0.3."""
    _, penalty = trained(chain, {"ratio": 0.5}, start=0.1, window=0.2, end=0.3)
    assert penalty.summary()["ready"] == 1


def test_mistakes():
    late = {"ratio": 0.5, "start": 0.6, "end": 0.5}
    for bad in ({}, {"ratio": 0.5, "macs": 0.5}, {"ratio": 1.0}, {"macs": 0.0}, late, {"ratio": 0.5, "criterion": "b"}):
        with pytest.raises(SlimError, match="Set penalty"):
            build("target", **bad)
    for name, values in (("rankings", ("x", 0, 2.5)), ("balance", ("x", -1)), ("memory", ("x", -1)), ("seed", ("x",))):
        for value in values:
            with pytest.raises(SlimError, match=f"Got {name}="):
                build(
                    "l0" if name == "seed" else "target", **({} if name == "seed" else {"ratio": 0.5}), **{name: value}
                )
    for select in ({"foo": 1}, {"ratio": 0.3}, {"min_channels": "x"}, {"overrides": ["0"]}):
        with pytest.raises(SlimError, match=f"Got {next(iter(select))}"):
            build("target", ratio=0.5, select=select)
    _, penalty = trained(chain, {"ratio": 0.5}, until=2)
    state = penalty.state_dict()
    other = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(256, 4)
    )
    again = build("target", ratio=0.5)
    again.load_state_dict(state)
    with pytest.raises(SlimError, match="fit the network"):
        again.attach(other, graph_of(other), TOTAL)
    assert np.isinf(penalty.forecast([0.1] * TOTAL, 0.9).shrink_budget)
