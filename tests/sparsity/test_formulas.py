"""Each law against its formula, written down a second time with autograd or in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slim.sparsity import build
from slim.sparsity.gammas import member_table
from slim.sparsity.lam_schedule import LamSchedule
from tests.sparsity.networks import Residual, chain, gamma_grads, gammas, graph_of, sgd, started, steps

LAM = 0.3


def added_gradient(law, net, **options):
    """What ``before_step`` adds to the gradients of all gammas, and the penalty."""
    penalty = build(law, **options)
    penalty.attach(net, graph_of(net), 10)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.125)
    penalty.before_step(0.1)
    return gamma_grads(net) - 0.125, penalty


def autograd(function, *values):
    values = [v.clone().requires_grad_() for v in values]
    function(*values).backward()
    return values[0].grad


def test_l1_is_lam_times_sign():
    net = started(chain)
    net[1].weight.data[0] = 0
    slope, penalty = added_gradient("l1", net, lam=LAM)
    torch.testing.assert_close(slope, LAM * torch.sign(gammas(net)))
    assert slope[0] == 0
    torch.testing.assert_close(penalty.value(), LAM * gammas(net).abs().sum())


@pytest.mark.parametrize("law", ["l1", "group", "polarization"])
def test_value_and_subgradient_agree(law):
    """The value's slope along a random direction is the subgradient's, for every law that has both."""
    net = started(Residual).double()
    slope, penalty = added_gradient(law, net, lam=LAM)
    torch.manual_seed(1)
    direction = torch.randn_like(slope)
    start, h = gammas(net), 1e-7
    values = []
    for sign in (1, -1):
        flat = (start + sign * h * direction).split(
            [m.numel() for m in (net.bn0.weight, net.abn1.weight, net.abn2.weight)]
        )
        for module, part in zip((net.bn0, net.abn1, net.abn2), flat, strict=True):
            module.weight.data.copy_(part)
        values.append(penalty.value())
    torch.testing.assert_close((values[0] - values[1]) / (2 * h), slope @ direction, rtol=1e-5, atol=1e-6)


def test_polarization_is_the_papers_formula():
    net = started(chain)
    slope, _ = added_gradient("polarization", net, lam=LAM, t=1.2)
    expected = autograd(lambda g: LAM * (1.2 * g.abs().sum() - (g - g.mean()).abs().sum()), gammas(net))
    torch.testing.assert_close(slope, expected)


def test_polarization_holds_gammas_inside_the_bound():
    net = started(chain)
    penalty = build("polarization", lam=LAM, bound=0.7)
    penalty.attach(net, graph_of(net), 10)
    steps(net, sgd(net), penalty, 0, 1)
    assert gammas(net).min() >= 0
    assert gammas(net).max() <= 0.7


def test_group_is_the_norm_over_the_members_of_a_stream():
    net = started(Residual)
    net.bn0.weight.data[2] = net.abn2.weight.data[2] = 0
    slope, _ = added_gradient("group", net, lam=LAM)
    stream = torch.stack([net.bn0.weight.data, net.abn2.weight.data])
    expected = LAM * 2**0.5 * stream / stream.norm(dim=0).clamp_min(1e-30)
    torch.testing.assert_close(slope[:8], expected[0])
    torch.testing.assert_close(slope[8:14], LAM * torch.sign(net.abn1.weight.data))
    torch.testing.assert_close(slope[14:], expected[1])
    assert slope[2] == 0


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-8, 1e-15, 1e-25, 1e-35])
def test_group_pulls_equally_at_a_group_of_any_size(size):
    """The subgradient of a norm does not depend on how small the group is; only at exactly zero there is none."""
    net, small = started(Residual), started(Residual)
    for module in (small.bn0, small.abn1, small.abn2):
        module.weight.data.mul_(size)
    expected, _ = added_gradient("group", net, lam=LAM)
    slope, _ = added_gradient("group", small, lam=LAM)
    torch.testing.assert_close(slope, expected)


def test_prox_is_the_soft_threshold():
    net = started(chain)
    penalty = build("prox", lam=4.0)
    penalty.attach(net, graph_of(net), 10)
    before = gammas(net)
    penalty.before_step(0.1)
    penalty.after_step(0.1)
    torch.testing.assert_close(gammas(net), torch.sign(before) * (before.abs() - 0.4).clamp_min(0))
    assert (gammas(net)[before.abs() <= 0.4] == 0).all()


def test_l0_steps_gates_and_scales_like_autograd():
    """One step with the gates frozen as drawn: gradients of theta and log alpha are autograd's through z * theta."""
    net = started(chain)
    penalty = build("l0", lam=LAM, prunable_only=True)
    theta = gammas(net)
    penalty.attach(net, graph_of(net), 10)
    log_alpha = penalty._log_alpha.detach().clone()
    s = penalty._s.clone()
    noise = s.logit() * (2 / 3) - log_alpha
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    upstream = gamma_grads(net)
    upstream_bias = torch.cat([net[1].bias.grad, net[4].bias.grad])
    beta = torch.cat([b for b in penalty._theta_bias.split(12)])

    a, t, b = (v.clone().requires_grad_() for v in (log_alpha, theta, beta))
    z = (torch.sigmoid((noise + a) / (2 / 3)) * 1.2 - 0.1).clamp(0, 1)
    open_gates = torch.sigmoid(a - (2 / 3) * np.log(0.1 / 1.1)).sum()
    (LAM * open_gates + (upstream * z * t).sum() + (upstream_bias * z * b).sum()).backward()
    penalty.before_step(0.1)
    torch.testing.assert_close(penalty._log_alpha.grad, a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gamma_grads(net), t.grad)
    torch.testing.assert_close(gammas(net), theta)


def test_l0_settled_gates_close_exactly():
    net = started(chain)
    theta = gammas(net)
    penalty = build("l0", lam=LAM)
    penalty.attach(net, graph_of(net), 10)
    with torch.no_grad():
        penalty._log_alpha[::2] = -5
        penalty._log_alpha[1::2] = 5
    penalty.use_deterministic_scales()
    assert (gammas(net)[::2] == 0).all()
    torch.testing.assert_close(gammas(net)[1::2], theta[1::2])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0, 1, 2, 2, 2]), ("linear", [0, 1, 2, 4 / 3, 2 / 3]), ("rising", [0, 1, 0, 2 / 3, 4 / 3])],
)
def test_strength(schedule, expected):
    strength = LamSchedule(2.0, warmup=0.4, schedule=schedule)
    np.testing.assert_allclose([strength.at(i, 5) for i in range(5)], expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_forecast_is_what_constant_pressure_does(momentum):
    """A gamma under L1 alone loses, in the limit, what the forecast says, and never more."""
    lrs = [0.05] * 400
    net = started(chain)
    penalty = build("l1", lam=1e-3)
    penalty.attach(net, graph_of(net), len(lrs))
    budget = penalty.forecast(lrs, momentum).shrink_budget
    assert budget == pytest.approx(0.05 * 400 * 1e-3 / (1 - momentum))
    for module in (net[1], net[4]):
        module.weight.data.fill_(1.0)
    optimizer = torch.optim.SGD([net[1].weight, net[4].weight], lr=0.05, momentum=momentum)
    for _ in lrs:
        for module in (net[1], net[4]):
            module.weight.grad = torch.zeros_like(module.weight)
        penalty.before_step(0.05)
        optimizer.step()
        penalty.after_step(0.05)
    lost = 1.0 - gammas(net)
    assert (lost <= budget * (1 + 1e-3)).all()
    assert (lost >= 0.95 * budget).all()


def test_forecast_warns_when_zero_is_out_of_reach():
    net = started(chain)
    penalty = build("l1", lam=1e-6)
    penalty.attach(net, graph_of(net), 10)
    weak = penalty.forecast([0.1] * 10, 0.9)
    assert not weak.reachable
    assert "penalty.lam" in weak.line
    strong = build("l1", lam=10.0)
    strong.attach(net, graph_of(net), 10)
    assert strong.forecast(1.0, 0.9).reachable
    none = build("l1", lam=0.0)
    none.attach(net, graph_of(net), 10)
    assert none.forecast([0.1] * 10, 0.9).line == "l1: lam=0 puts no pressure on the scales."


@pytest.mark.parametrize("law", ["l1", "prox", "polarization", "group"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "rising"])
def test_the_strength_that_a_forecast_advises_suffices(law, schedule):
    net, lrs = started(chain), [0.1] * 8 + [0.01] * 8
    options = {"warmup": 0.2, "schedule": schedule}
    weak = build(law, lam=1e-6, **options)
    weak.attach(net, graph_of(net), len(lrs))
    advice = float(weak.forecast(lrs, 0.9).line.split("set penalty.lam to ")[1].split()[0])
    for lam, enough in ((advice, True), (0.85 * advice, False)):
        penalty = build(law, lam=lam, **options)
        penalty.attach(net, graph_of(net), len(lrs))
        assert penalty.forecast(lrs, 0.9).reachable == enough


def test_a_budget_as_large_as_the_median_reaches_zero():
    """Ten times 0.1 add up to a little less than 1."""
    net = chain()
    law = build("prox", lam=1.0)
    law.attach(net, graph_of(net), 10)
    assert law.forecast([0.1] * 10, 0.9).reachable


def test_member_table_sums_like_a_scatter():
    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 6, 40)
    table, index, counts = member_table(groups)
    values = rng.normal(size=40)
    sums = np.append(values, 0)[table].sum(1)
    expected = np.zeros(len(counts))
    np.add.at(expected, index, values)
    np.testing.assert_allclose(sums, expected)
    for i in range(40):
        same = groups == groups[i] if groups[i] >= 0 else np.arange(40) == i
        np.testing.assert_array_equal(index == index[i], same)
