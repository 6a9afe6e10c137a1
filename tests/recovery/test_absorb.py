"""Absorbing: where gamma is zero, the cut network equals the network before the cut, in the interior."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slim.channels import mask, rebuild, trace
from slim.errors import SlimError
from slim.recovery import absorb

ACTIVATIONS = [nn.ReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU, nn.Tanh]


def conv(cin: int, cout: int, kernel: int = 1, bias: bool = False, **options) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, bias=bias, **{"padding": kernel // 2, **options})


class Chain(nn.Module):
    """Convolution, BatchNorm, activation, twice; ``kernel`` 1 has no border at all."""

    def __init__(self, act=nn.ReLU, kernel=1, bias=False):
        super().__init__()
        self.net = nn.Sequential(
            conv(3, 8, kernel, bias), nn.BatchNorm2d(8), act(), conv(8, 10, kernel, bias), nn.BatchNorm2d(10), act(),
            nn.MaxPool2d(2), conv(10, 6, kernel, bias), nn.BatchNorm2d(6), act(),
        )  # fmt: skip
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = conv(3, 8), nn.BatchNorm2d(8)
        self.a1, self.abn1, self.a2, self.abn2 = conv(8, 6), nn.BatchNorm2d(6), conv(6, 8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(x + self.abn2(self.a2(torch.relu(self.abn1(self.a1(x))))))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """The reader's constant passes a convolution without bias into a stream; the next BatchNorm takes it."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.bn1, self.c1, self.bn2, self.c2 = nn.BatchNorm2d(8), conv(8, 6), nn.BatchNorm2d(6), conv(6, 8)
        self.last, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c2(torch.relu(self.bn2(self.c1(torch.relu(self.bn1(x))))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bna, self.b, self.bnb = conv(3, 5), nn.BatchNorm2d(5), conv(3, 7), nn.BatchNorm2d(7)
        self.bn, self.c, self.head = nn.BatchNorm2d(12), conv(12, 6, bias=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.bna(self.a(x))), torch.relu(self.bnb(self.b(x)))], 1)
        return self.head(torch.relu(self.c(torch.relu(self.bn(x)))).mean((2, 3)))


class Gated(nn.Module):
    """A squeeze-excite gate, a depthwise convolution and a grouped one."""

    def __init__(self):
        super().__init__()
        self.a, self.bn1 = conv(3, 8), nn.BatchNorm2d(8)
        self.down, self.up = conv(8, 4, bias=True), conv(4, 8, bias=True)
        self.depth, self.bn2 = conv(8, 8, groups=8), nn.BatchNorm2d(8)
        self.grouped, self.bn3 = conv(8, 8, groups=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.hardswish(self.bn1(self.a(x)))
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        x = torch.relu(self.bn2(self.depth(x)))
        return self.head(torch.relu(self.bn3(self.grouped(x))).mean((2, 3)))


class Instance(nn.Module):
    """Scales of an InstanceNorm: what follows takes the constants all the same."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = conv(3, 8), nn.InstanceNorm2d(8, affine=True), conv(8, 6, bias=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))


NETWORKS = [
    Chain,
    Instance,
    Residual,
    PreActivation,
    Concat,
    Gated,
    lambda: Chain(bias=True),
    *(lambda a=a: Chain(a) for a in ACTIVATIONS),
]


def dead(make, *, share: float = 0.5, seed: int = 0):
    """A network with random weights and statistics with gamma zero on half of the removable groups, and these."""
    torch.manual_seed(seed)
    net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    graph = trace(net, torch.zeros(1, 3, 12, 12))
    rng = np.random.default_rng(seed)
    scaled = np.zeros(len(graph), bool)
    for scale in graph.scales:
        scaled[scale.groups[scale.groups >= 0]] = True
    gone = np.zeros(len(graph), bool)
    for space in graph.spaces:
        able = space.groups[graph.prunable[space.groups] & scaled[space.groups]]
        gone[able[: int(share * len(able))] if graph.balance else rng.permutation(able)[: int(share * len(able))]] = (
            True
        )
    for balance in graph.balance:
        for block in balance.blocks:
            gone[block] = False
            gone[block[: len(block) // 2]] = True
    gone = graph.closure(gone)
    with torch.no_grad():
        parameters = dict(net.named_parameters())
        for scale in graph.scales:
            own = scale.groups >= 0
            parameters[scale.weight][torch.from_numpy(own & gone[np.where(own, scale.groups, 0)])] = 0
    return net, graph, gone


@pytest.mark.parametrize("make", NETWORKS)
def test_the_cut_changes_nothing_where_gamma_is_zero(make):
    net, graph, gone = dead(make)
    plan = graph.plan(gone)
    better = absorb(net, plan, graph)
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(mask(better, plan)(x), net(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(rebuild(better, plan)(x), net(x), rtol=1e-3, atol=1e-4)
    assert (mask(net, plan)(x) - net(x)).abs().max() > 1e-2


@pytest.mark.parametrize("size", [12, 4, 2, 1])
def test_padding_is_approximate_at_the_border_only(size):
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), conv(8, 10, 3), nn.BatchNorm2d(10)).eval()
    nn.init.normal_(net[1].bias)
    net[1].weight.data[:4] = 0
    graph = trace(nn.Sequential(net, nn.Flatten(), nn.Linear(10 * size**2, 2)), torch.zeros(1, 3, size, size))
    names = {s.weight: s.groups for s in graph.scales}
    gone = np.zeros(len(graph), bool)
    gone[names["0.1.weight"][:4]] = True
    plan = graph.plan(gone)
    whole = graph.model.eval()
    x = torch.randn(2, 3, size, size)
    error = (mask(absorb(whole, plan, graph), plan)[0](x) - net(x)).abs().amax((0, 1))
    if size > 2:
        assert error[1:-1, 1:-1].max() < 1e-5
    assert error.max() > 1e-3


@pytest.mark.parametrize(
    "frame",
    [
        lambda: [nn.ZeroPad2d(2), conv(8, 10, 5, padding=0)],
        lambda: [nn.AvgPool2d(3, 1, padding=1), conv(8, 10)],
        lambda: [nn.ConvTranspose2d(8, 10, 3, padding=1, bias=False)],
    ],
)
def test_the_interior_is_exact_whatever_frames_it(frame):
    """A border that no convolution repeats misses the constant; what is stored is the interior's, not an average."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(10)
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.SiLU(), *frame(), norm).eval()
    nn.init.normal_(net[1].bias)
    net[1].weight.data[:4] = 0
    whole = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 2)).eval()
    graph = trace(whole, torch.zeros(1, 3, 16, 16))
    gone = np.zeros(len(graph), bool)
    gone[{s.weight: s.groups for s in graph.scales}["0.1.weight"][:4]] = True
    plan = graph.plan(gone)
    x = torch.randn(2, 3, 16, 16)
    error = (mask(absorb(whole, plan, graph), plan)[0](x) - net(x)).abs().amax((0, 1))
    assert error[2:-2, 2:-2].max() < 1e-5
    assert error.max() > 1e-3


def test_the_mask_and_the_plan_say_the_same_and_the_caller_keeps_the_model():
    net, graph, gone = dead(Chain)
    before = copy.deepcopy(net.state_dict())
    by_mask, by_plan = absorb(net, gone, graph), absorb(net, graph.plan(gone), graph)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(by_mask.state_dict()[name], by_plan.state_dict()[name])
    assert all(m.padding_mode == "zeros" for m in net.modules() if isinstance(m, nn.Conv2d))
    assert absorb(net, gone, graph, in_place=True) is net
    for name, value in by_mask.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


def test_constants_do_not_depend_on_the_example():
    net, graph, gone = dead(Residual)
    a = absorb(net, gone, graph, example_inputs=torch.randn(5, 3, 9, 9))
    b = absorb(net, gone, graph)
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-3, atol=1e-4)


class Stacked(nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self):
        super().__init__()
        self.net = Chain()

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.net(torch.stack(images))


@pytest.mark.parametrize("given", [True, False])
def test_a_list_is_one_argument(given):
    net, _, _ = dead(Chain)
    whole, images = Stacked().eval(), list(torch.randn(3, 3, 12, 12))
    whole.net.load_state_dict(net.state_dict())
    graph = trace(whole, images)
    gone = np.zeros(len(graph), bool)
    gone[graph.axes["net.net.0.weight", 0][(net.net[1].weight == 0).numpy()]] = True
    plan = graph.plan(gone)
    better = absorb(whole, plan, graph, example_inputs=images if given else None)
    torch.testing.assert_close(rebuild(better, plan)(images), whole(images), rtol=1e-3, atol=1e-4)


class Noisy(nn.Module):
    """Draws random numbers in eval mode too, as the sampling of an autoencoder does."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, bias=True), nn.ReLU())
        self.head = conv(6, 4, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x + torch.randn_like(x))
        return self.head(torch.nn.functional.dropout(x) + float(np.random.rand()))


def test_a_forward_that_draws_random_numbers_leaves_no_noise_where_every_beta_is_zero():
    net = Noisy().eval()
    graph = trace(net, torch.zeros(2, 3, 12, 12))
    gone = np.zeros(len(graph), bool)
    gone[graph.axes["net.0.weight", 0][:4]] = True
    net.net[1].weight.data[:4] = 0
    state = torch.get_rng_state()
    same = absorb(net, gone, graph)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in net.state_dict().items())


def test_nothing_removed_nothing_changed():
    net, graph, _ = dead(Chain)
    same = absorb(net, np.zeros(len(graph), bool), graph)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), same.state_dict().values(), strict=True))


def test_channels_without_a_scale_are_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(
        conv(3, 6, bias=True), nn.ReLU(), conv(6, 4, bias=True), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).eval()
    graph = trace(net, torch.zeros(1, 3, 6, 6))
    gone = np.zeros(len(graph), bool)
    gone[graph.spaces[1].groups[:3]] = True
    same = absorb(net, gone, graph)
    for name, value in same.state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name])


def test_a_mask_of_another_graph_is_refused():
    net, graph, _ = dead(Chain)
    with pytest.raises(SlimError, match="absorb needs a mask"):
        absorb(net, np.zeros(3, bool), graph)


class Called(nn.Module):
    """One layer that is called twice, or two that share weight and bias, behind what is dead."""

    def __init__(self, tied: bool):
        super().__init__()
        self.a, self.norm, self.b, self.c = conv(3, 8), nn.BatchNorm2d(8), conv(8, 6, bias=True), conv(6, 4, bias=True)
        self.other = conv(8, 6, bias=True) if tied else self.b
        self.other.weight, self.other.bias = self.b.weight, self.b.bias

    def forward(self, x: Tensor) -> Tensor:
        left, right = (torch.relu(self.norm(self.a(each))) for each in (x, 2 * x))
        return self.c(torch.relu(self.b(left)) + torch.relu(self.other(right))).mean((2, 3))


@pytest.mark.parametrize("tied", [False, True])
def test_a_bias_of_several_calls_gets_its_constant_once(tied):
    net, graph, gone = dead(lambda: Called(tied))
    plan, x = graph.plan(gone), torch.randn(3, 3, 12, 12)
    assert (mask(net, plan)(x) - net(x)).abs().max() > 1e-2
    torch.testing.assert_close(rebuild(absorb(net, plan, graph), plan)(x), net(x), rtol=1e-3, atol=1e-4)
