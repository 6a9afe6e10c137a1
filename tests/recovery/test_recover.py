"""Recovery never hurts: a step that does not help is taken back, and nothing beside the network moves."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.data import DigitsData
from slim.errors import SlimError
from slim.recovery import absorb, recalibrate, recover
from tests.criteria.networks import Named, residual
from tests.criteria.networks import batches as images

INPUTS = torch.zeros(1, 1, 16, 16)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def digits(**options) -> DigitsData:
    # Shifts by up to half of the image, so that they matter to the statistics.
    return DigitsData(image_size=16, batch_size=32, padding=8, val_fraction=0.0, seed=1, **options)


def accuracy(net: nn.Module) -> float:
    with torch.no_grad():
        right = [net.eval()(x).argmax(1) == y for x, y in digits().test_dataloader()]
    return float(torch.cat(right).float().mean())


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Eight epochs on digits, augmented."""
    net, loader = network(), digits().train_dataloader()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 8 * len(loader), cycle_momentum=False)
    for _ in range(8):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            rates.step()
    return net.eval()


def cut(net: nn.Module, share: float = 0.5):
    graph = slim.trace(net, INPUTS)
    return graph, slim.select(graph, slim.score(graph, "gamma"), ratio=share)


def test_a_network_that_lost_nothing_keeps_its_accuracy(trained: nn.Module) -> None:
    """Statistics of batches as trained on are those the network has; statistics without augmentation are not."""
    before = accuracy(trained)
    error = math.sqrt(before * (1 - before) / 360)
    changes = {}
    for batches in (digits().calibration_batches(), digits().plain_batches(100)):
        again = copy.deepcopy(trained)
        recalibrate(again, batches)
        changes[type(batches).__name__] = abs(accuracy(again) - before)
    assert changes["CalibrationBatches"] < error < changes["list"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_it_is_never_worse_than_the_bare_cut(trained: nn.Module, share: float) -> None:
    graph, plan = cut(trained, share)
    found = recover(trained, plan, graph, batches=digits().calibration_batches, evaluate=accuracy)
    after = accuracy(found.network)
    assert after >= accuracy(slim.rebuild(trained, plan))
    assert [step.name for step in found.steps] == ["absorb", "recalibrate"]
    assert found.steps[-1].after == after if found.steps[-1].kept else found.steps[-1].before == after


@pytest.mark.parametrize("absorbing", [True, False])
@pytest.mark.parametrize("recalibrating", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_each_step_is_kept_or_taken_back_by_itself(absorbing: bool, recalibrating: bool, in_place: bool) -> None:
    """What comes out is, bit for bit, the network made with the kept steps alone."""
    net = network()
    for norm in (net[1], net[5]):
        nn.init.normal_(norm.bias)
        norm.weight.data[: len(norm.weight) // 2] = 0
    graph, plan = cut(net)
    data = list(digits().calibration_batches(3))
    bare = slim.rebuild(net, plan)
    moved = slim.rebuild(absorb(net, plan, graph), plan)
    expected = moved if absorbing else bare
    figures = {key(bare): 0.5, key(moved): 0.6 if absorbing else 0.4}
    calibrated = copy.deepcopy(expected)
    recalibrate(calibrated, data)
    figures[key(calibrated)] = 0.9 if recalibrating else 0.1
    expected = calibrated if recalibrating else expected
    untouched = copy.deepcopy(net.state_dict())

    rebuild = (lambda whole: slim.rebuild(whole, plan, in_place=True)) if in_place else None
    found = recover(net, plan, graph, batches=data, evaluate=lambda n: figures[key(n)], rebuild=rebuild)

    assert key(found.network) == key(expected)
    assert [step.kept for step in found.steps] == [absorbing, recalibrating]
    assert found.steps[0].before == 0.5 and found.steps[1].after == (0.9 if recalibrating else 0.1)
    assert (found.network is net) == in_place
    if not in_place:
        assert all(torch.equal(value, untouched[name]) for name, value in net.state_dict().items())


def key(net: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in net.state_dict().values())


def test_a_tie_keeps_the_constants_and_the_statistics_of_the_training(trained: nn.Module) -> None:
    graph, plan = cut(trained)
    found = recover(trained, plan, graph, batches=digits().calibration_batches(2), evaluate=lambda net: 0.3)
    assert [step.kept for step in found.steps] == [True, False]
    assert key(found.network) == key(slim.rebuild(absorb(trained, plan, graph), plan))


def test_a_figure_that_is_no_number_is_no_help(trained: nn.Module) -> None:
    graph, plan = cut(trained)
    seen = iter([0.3, math.nan, math.nan])
    found = recover(trained, plan, graph, batches=digits().calibration_batches(2), evaluate=lambda net: next(seen))
    assert [step.kept for step in found.steps] == [False, False]
    seen = iter([math.nan, 0.1])
    found = recover(
        trained, plan, graph, absorb=False, batches=[torch.randn(4, 1, 16, 16)], evaluate=lambda n: next(seen)
    )
    assert [step.kept for step in found.steps] == [True]


def test_without_a_figure_every_step_is_kept_and_says_so(trained: nn.Module) -> None:
    graph, plan = cut(trained)
    found = recover(trained, plan, graph, batches=digits().calibration_batches, count=3)
    assert [(step.kept, step.before, step.after) for step in found.steps] == [(True, None, None)] * 2
    assert all("not evaluated" in str(step) for step in found.steps)
    expected = slim.rebuild(absorb(trained, plan, graph), plan)
    recalibrate(expected, digits().calibration_batches(3))
    assert key(found.network) == key(expected)


def test_steps_that_are_not_asked_for_or_have_nothing_to_do(trained: nn.Module) -> None:
    graph, plan = cut(trained)
    assert recover(trained, plan, graph, absorb=False).steps == ()
    assert key(recover(trained, plan, graph, absorb=False).network) == key(slim.rebuild(trained, plan))
    assert recover(trained, plan, graph, absorb=False, batches=[], count=0).steps == ()
    whole = np.zeros(len(graph), bool)
    assert "nothing was removed" in recover(trained, whole, graph).steps[0].reason
    bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    graph = slim.trace(bare, INPUTS)
    plan = slim.select(graph, slim.score(graph, "l1"), ratio=0.5)
    found = recover(bare, plan, graph, batches=[torch.randn(4, 1, 16, 16)], evaluate=lambda net: 0.0)
    assert [(step.name, step.kept) for step in found.steps] == [("absorb", True), ("recalibrate", False)]


def test_a_training_goes_on_as_if_nothing_had_been(trained: nn.Module) -> None:
    """Generators, modes, the loader's place, and the identity of every parameter."""
    net = copy.deepcopy(trained).train()
    net[5].eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loader = digits().train_dataloader()
    running = iter(loader)
    next(running)
    following = [x for x, _ in list(digits().train_dataloader())[1:]]
    known = {id(p) for p in net.parameters()}
    graph, plan = cut(net)
    modes = [module.training for module in net.modules()]

    def evaluate(candidate: nn.Module) -> float:
        torch.rand(3), np.random.rand(3), random.random()
        assert not torch.is_grad_enabled() and not candidate.training
        return accuracy(candidate)

    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = recover(
        net, plan, graph, batches=loader, count=5, evaluate=evaluate,
        rebuild=lambda whole: slim.rebuild(whole, plan, in_place=True, optimizer=optimizer),
    )  # fmt: skip
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    assert state[2] == random.getstate()
    assert found.network is net and [module.training for module in net.modules()] == modes
    assert {id(p) for p in net.parameters()} == known == {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert all(torch.equal(x, y) for (x, _), y in zip(running, following, strict=True))


def test_networks_that_are_not_called_with_the_first_of_a_batch(trained: nn.Module) -> None:
    graph, plan = cut(trained)
    data = [x for x, _ in digits().calibration_batches(3)]
    plain = recover(trained, plan, graph, batches=data)
    packed = [{"first": torch.zeros(2), "images": {"left": x}} for x in data]
    run = recover(trained, plan, graph, batches=packed, forward=lambda net, batch: net(batch["images"]["left"]))
    picked = recover(trained, plan, graph, batches=packed, inputs=lambda batch: (batch["images"]["left"],))
    assert key(plain.network) == key(run.network) == key(picked.network)


def test_batches_that_fail_leave_the_statistics(trained: nn.Module) -> None:
    net = copy.deepcopy(trained)

    def failing():
        yield torch.randn(4, 1, 16, 16)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        recalibrate(net, failing())
    assert key(net) == key(trained)
    graph, plan = cut(net)
    with pytest.raises(SlimError, match="at least 2 samples"):
        recover(net, plan, graph, batches=[])


def test_a_step_that_leaves_no_numbers_is_taken_back_whatever_the_metric_says() -> None:
    """An accuracy is a number for logits that are none: the largest of them is the first."""
    net = network()
    with torch.no_grad():
        net[1].bias.fill_(1.0)
        net[4].weight.fill_(3e38)  # overflows: what a removed channel said is infinity less infinity
    graph = slim.trace(net, INPUTS)
    gone = np.zeros(len(graph), dtype=bool)
    gone[graph.axes[("0.weight", 0)][:3]] = True
    found = recover(net, gone, graph, batches=[torch.randn(4, 1, 16, 16)], evaluate=lambda thin: 0.5)
    assert [(step.kept, "numbers that are none" in step.reason) for step in found.steps] == [(False, True)] * 2
    assert all(bool(t.isfinite().all()) for t in (*found.network.parameters(), *found.network.buffers()))


def test_a_cut_network_trains_in_bf16_on_maps_of_one_pixel() -> None:
    """Odd widths, maps of one pixel, channels last: as timm's resnet10t is trained on images of 16 x 16."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, 4, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.Conv2d(24, 40, 3, 2, 1, bias=False), nn.BatchNorm2d(40), nn.ReLU(),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(40, 48, 1, bias=False),
        nn.BatchNorm2d(48), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            module.weight.data[::4] = 0.0
    graph = slim.trace(net, INPUTS)
    chosen = slim.select_groups(graph, slim.score(graph), ratio=0.3)
    x, y = torch.randn(32, 1, 16, 16), torch.arange(32) % 10
    found = recover(net, chosen.removed, graph, batches=[x], evaluate=lambda thin: 0.5)
    thin = found.network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(thin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(thin(x.to(memory_format=torch.channels_last)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite() and all(bool(p.grad.isfinite().all()) for p in thin.parameters())


def test_layers_may_be_called_by_keyword() -> None:
    (plain, graph), named = residual(), Named()
    named.load_state_dict(plain.state_dict())
    chosen = slim.select(graph, slim.score(graph), ratio=0.5)
    data = [x for x, _ in images(4, 16)]
    found = [
        recover(net, chosen, slim.trace(net, torch.zeros(1, 3, 8, 8)), batches=data, least_squares=4, evaluate=None)
        for net in (plain, named)
    ]
    assert [step.kept for step in found[0].steps] == [True] * 3
    states = [each.network.state_dict() for each in found]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
