"""Laws that hold for every penalty: resumes bit by bit, leaves frozen scales alone, refuses bad options."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from slim.channels import trace
from slim.errors import SlimError
from slim.sparsity import LAWS, build, gamma_parameters
from slim.sparsity.gammas import collect_gammas
from tests.sparsity.networks import Residual, chain, gammas, graph_of, sgd, started, steps

OPTIONS = {
    "l1": {"lam": 1e-2, "warmup": 0.2, "schedule": "cosine"},
    "prox": {"lam": 5e-2},
    "target": {"ratio": 0.5, "start": 0.1, "end": 0.8, "window": 0.2},
    "polarization": {"lam": 1e-2},
    "group": {"lam": 1e-2},
    "l0": {"lam": 1e-2, "gate_lr": 0.1},
}
laws = pytest.mark.parametrize("law", OPTIONS)


def test_every_law_is_tested():
    assert set(OPTIONS) == set(LAWS)


@laws
@pytest.mark.parametrize("load_first", [False, True])
def test_resumes_bit_by_bit(law, load_first):
    stop, total = 9, 16

    def begin():
        net = started(Residual)
        return net, sgd(net), build(law, **OPTIONS[law])

    net, optimizer, penalty = begin()
    penalty.attach(net, graph_of(net), total)
    steps(net, optimizer, penalty, 0, total)

    half, half_optimizer, half_penalty = begin()
    half_penalty.attach(half, graph_of(half), total)
    steps(half, half_optimizer, half_penalty, 0, stop)
    file = io.BytesIO()
    torch.save([half.state_dict(), half_optimizer.state_dict(), half_penalty.state_dict()], file)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)

    again, again_optimizer, again_penalty = begin()
    again.load_state_dict(weights)
    again_optimizer.load_state_dict(moments)
    if load_first:
        again_penalty.load_state_dict(state)
        again_penalty.attach(again, graph_of(again), total)
    else:
        again_penalty.attach(again, graph_of(again), total)
        again.load_state_dict(weights)
        again_penalty.load_state_dict(state)
    steps(again, again_optimizer, again_penalty, stop, total)

    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(penalty.value(), again_penalty.value())


@laws
def test_a_second_phase_begins_anew(law):
    net = started(chain)
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(net), 10)
    steps(net, sgd(net), penalty, 0, 10)
    penalty.attach(net, graph_of(net), 20)
    assert penalty.state_dict()["step"] == 0


@laws
def test_frozen_gammas_are_left_alone(law):
    net = started(chain)
    net[1].weight.requires_grad_(False)
    before = net[1].weight.clone()
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(net), 10)
    steps(net, sgd(net), penalty, 0, 10)
    assert torch.equal(net[1].weight, before)
    assert net[1].weight.grad is None


@laws
def test_a_layer_without_gradient_is_no_error(law):
    net = started(chain)
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(net), 20)
    penalty.before_step(0.1)
    penalty.after_step(0.1)
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


@laws
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_precision(law, dtype):
    net = started(chain).to(dtype)
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(started(chain)), 4)
    for _ in range(4):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        penalty.before_step(0.1)
        penalty.after_step(0.1)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert torch.isfinite(gammas(net)).all()


@laws
def test_structure_and_state_dict_of_the_model_stay(law):
    net = started(Residual)
    names, shape = list(net.state_dict()), str(net)
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(net), 10)
    steps(net, sgd(net), penalty, 0, 10)
    assert list(net.state_dict()) == names
    assert str(net) == shape
    assert torch.isfinite(gammas(net)).all()


@laws
def test_zeros_are_exact_where_promised(law):
    net = started(chain)
    options = dict(OPTIONS[law])
    if "lam" in options:
        options["lam"] = 1.0
    if "gate_lr" in options:
        options["gate_lr"] = 0.5
    penalty = build(law, **options)
    penalty.attach(net, graph_of(net), 30)
    steps(net, sgd(net), penalty, 0, 30)
    if penalty.exact_zeros:
        assert (gammas(net) == 0).float().mean() >= 0.4
    assert 0 <= penalty.summary()["zero"] <= 1


@laws
def test_value_is_a_scalar_tensor(law):
    net = started(chain)
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(net), 20)
    value = penalty.value()
    assert value.dim() == 0
    assert not value.requires_grad


@laws
def test_forecast_is_one_line(law):
    net = started(chain)
    penalty = build(law, **OPTIONS[law])
    penalty.attach(net, graph_of(net), 20)
    for lrs in ([0.1] * 20, 2.0):
        forecast = penalty.forecast(lrs, 0.9)
        assert "\n" not in forecast.line
        assert forecast.line.startswith(law)


@laws
def test_zero_strength_changes_nothing(law):
    if law == "target":
        options = {"ratio": 0.0}
    elif law == "l0":
        pytest.skip("gates are noise whatever their price")
    else:
        options = {"lam": 0.0}
    net, plain = started(chain), started(chain)
    for twin in (net, plain):
        for module in (twin[1], twin[4]):
            module.weight.data.abs_().clamp_(0, 0.5)
    penalty = build(law, **options)
    penalty.attach(net, graph_of(net), 5)
    steps(net, sgd(net), penalty, 0, 5)
    steps(plain, sgd(plain), None, 0, 5)
    assert torch.equal(gammas(net), gammas(plain))


@laws
def test_the_caller_hears_of_mistakes(law):
    with pytest.raises(SlimError, match="no option lamb"):
        build(law, lamb=1)
    with pytest.raises(SlimError, match="total_steps must be >= 1"):
        net = started(chain)
        build(law, **OPTIONS[law]).attach(net, graph_of(net), 0)
    with pytest.raises(SlimError, match="a normalization layer with a trainable scale"):
        bare = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten(), torch.nn.Linear(256, 4))
        build(law, **OPTIONS[law]).attach(bare, graph_of(bare), 5)
    with pytest.raises(SlimError, match="same law"):
        build(law, **OPTIONS[law]).load_state_dict({"law": "another", "step": 3})


def test_unknown_law_and_bad_strength():
    with pytest.raises(SlimError, match="Did you mean target"):
        build("targt")
    for bad in ({"lam": -1.0}, {"lam": float("nan")}, {"warmup": 1.0}, {"schedule": "constnt"}):
        with pytest.raises(SlimError, match="Set penalty"):
            build("l1", **bad)


def test_norms_of_other_kinds_are_acted_on_when_asked():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1), torch.nn.InstanceNorm2d(8, affine=True), torch.nn.Conv2d(8, 8, 1),
        torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 1), torch.nn.GroupNorm(8, 8), torch.nn.Flatten(1, 2),
        torch.nn.Linear(8, 8, bias=False), torch.nn.LayerNorm(8, bias=False), torch.nn.Linear(8, 4),
    )  # fmt: skip
    graph = trace(net, torch.zeros(2, 3, 8, 8))
    assert collect_gammas(net, graph, norms="batch").names == ["3.weight"]
    found = collect_gammas(net, graph, norms="all")
    assert found.names == ["1.weight", "3.weight", "5.weight", "8.weight"]
    assert [id(b) for b in found.biases] == [id(net[i].bias) for i in (1, 3, 5)]


def test_gamma_parameters_are_the_models_own():
    net = started(Residual)
    net.bn0.weight.requires_grad_(False)
    found = gamma_parameters(graph_of(net))
    assert {id(p) for p in found} == {id(net.bn0.weight), id(net.abn1.weight), id(net.abn2.weight)}
    twin = copy.deepcopy(net)
    assert {id(p) for p in gamma_parameters(graph_of(net), twin)} == {
        id(twin.bn0.weight), id(twin.abn1.weight), id(twin.abn2.weight)}  # fmt: skip
