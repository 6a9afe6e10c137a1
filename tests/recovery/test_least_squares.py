"""Least squares after a cut: exact where it can be, never worse on what it has not seen, nothing beside it moves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import slim
from slim.criteria.patches import draw, outputs_at, patches
from slim.errors import SlimError
from slim.recovery import absorb, least_squares, recover
from slim.recovery.normal_equations import NormalEquations

INPUTS = torch.zeros(1, 3, 8, 8, dtype=torch.float64)


def images(count: int = 4, size: int = 32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(count)]


def alive(net: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, in eval mode, BatchNorm as after some training."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.2, 2)
    return net.double().eval()


class Chain(nn.Module):
    """Two convolutions with BatchNorm (and without bias), a grouped and a depthwise one, a classifier behind views."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b, self.b_norm = nn.Conv2d(12, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 8, (3, 1), padding=1, groups=2)
        self.d = nn.Conv2d(8, 8, 3, padding=2, dilation=2, padding_mode="reflect", groups=8)
        self.head = nn.Linear(8 * 4 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.a_norm(self.a(x)))
        x = torch.relu_(self.b_norm(self.b(x)))
        return self.head(torch.relu_(self.d(torch.relu_(self.c(x)))).flatten(1))


class PreActivation(nn.Module):
    """A stream of sums that BatchNorms read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        for i in range(2):
            self.add_module(f"norm{i}", nn.BatchNorm2d(8))
            self.add_module(f"conv{i}", nn.Conv2d(8, 8, 3, padding=1, bias=False))
        self.last, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in ((self.norm0, self.conv0), (self.norm1, self.conv1)):
            x = x + conv(torch.relu(norm(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    net = alive(Chain())
    graph = slim.trace(net, INPUTS)
    return net, graph, slim.select(graph, slim.score(graph, "l1", normalize="max"), ratio=0.4, min_channels=2)


def state(net: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(net.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


LAYERS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="circular"),
    nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4), nn.Conv2d(4, 6, 2, padding=1, padding_mode="reflect"),
    nn.Conv3d(4, 6, 2, stride=(1, 2, 1)), nn.Linear(4, 6),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_patches_times_weights_are_the_outputs(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double()
    shape = (12, 4) if isinstance(layer, nn.Linear) else (4, *(9, 7, 5)[: layer.weight.dim() - 2])
    x = torch.randn(2, *shape, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        where = draw(layer, y, 10, torch.Generator().manual_seed(0))
        z = patches(layer, x, y, where)
        blocks = getattr(layer, "groups", 1)
        weight = layer.weight.reshape(blocks, -1, layer.weight[0].numel())
        made = torch.einsum("npgd,god->npgo", z.reshape(2, len(where), blocks, -1), weight).flatten(2) + layer.bias
    assert len(set(where.tolist())) == len(where) == min(10, y[0].numel() // len(layer.weight))
    torch.testing.assert_close(made, outputs_at(layer, y, where))


@settings(deadline=None, max_examples=20)
@given(
    kernel=st.sampled_from([1, 3]), stride=st.sampled_from([1, 2]), kept=st.integers(1, 4), lost=st.integers(1, 3),
    bias=st.booleans(), norm=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_channels_that_others_span_cost_nothing(
    kernel: int, stride: int, kept: int, lost: int, bias: bool, norm: bool, seed: int
) -> None:
    """Linear combinations of kept channels, plus a constant where a constant can be stored."""
    torch.manual_seed(seed)
    width, pad = kept + lost, kernel // 2
    first = nn.Conv2d(3, width, 3, padding=1)
    second = nn.Conv2d(width, 5, kernel, stride, pad, padding_mode="replicate", bias=bias)
    behind = [nn.BatchNorm2d(5)] if norm else []
    net = alive(
        nn.Sequential(first, second, *behind, nn.ReLU(), nn.Flatten(), nn.Linear(5 * (8 // stride) ** 2, 4)), seed
    )
    order = torch.randperm(width)
    stays, goes = order[:kept], order[kept:]
    mix = torch.randn(lost, kept, dtype=torch.float64)
    with torch.no_grad():
        first.weight[goes] = torch.einsum("lk,kihw->lihw", mix, first.weight[stays])
        first.bias[goes] = mix @ first.bias[stays] + (torch.randn(lost) if bias or norm else 0.0)
    graph = slim.trace(net, INPUTS)
    gone = np.zeros(len(graph), bool)
    gone[graph.axes[("0.weight", 0)][goes.numpy()]] = True
    thin = slim.rebuild(net, graph.plan(gone))
    x = images(1, seed=7)[0]
    with torch.no_grad():
        (found,) = [each for each in least_squares(thin, net, graph.plan(gone), images(2)) if each.before]
        assert found.after < 1e-12
        torch.testing.assert_close(thin(x), net(x), rtol=1e-6, atol=1e-6)


def test_nothing_removed_and_no_batches_change_nothing(chain) -> None:
    net, graph, plan = chain
    whole = graph.plan(np.zeros(len(graph), bool))
    thin = slim.rebuild(net, whole)
    assert least_squares(thin, net, whole, images()) == [] and same(state(thin), state(net))
    thin = slim.rebuild(net, plan)
    before = state(thin)
    assert least_squares(thin, net, plan, images(), 0) == [] and same(state(thin), before)
    with pytest.raises(SlimError, match="least squares needs a batch"):
        least_squares(thin, net, plan, [])
    with pytest.raises(SlimError, match=r"at least 0. Got n=-1"):
        least_squares(thin, net, plan, images(), -1)
    assert same(state(thin), before)


def test_each_layer_gains_on_new_images_and_nothing_else_moves(chain) -> None:
    net, _, plan = chain
    dense, thin = copy.deepcopy(net).train(), slim.rebuild(net, plan)
    before, untouched, generator = state(thin), state(dense), torch.get_rng_state()
    found = least_squares(thin, dense, plan, images())
    assert [each.module for each in found] == ["b", "c", "d", "head"]
    assert all(each.kept for each in found) and found[0].after < 0.7 * found[0].before
    changed = {name for name, value in state(thin).items() if not torch.equal(value, before[name])}
    fitted = {f"{name}.{kind}" for name in ("c", "d", "head") for kind in ("weight", "bias")}
    assert changed == fitted | {"b.weight", "b_norm.running_mean"}
    assert same(state(dense), untouched) and torch.equal(generator, torch.get_rng_state())
    assert all(module.training for module in dense.modules())
    assert not any(m._forward_hooks for m in (*dense.modules(), *thin.modules()))
    x = images(1, seed=5)[0]
    with torch.no_grad():
        error = [(each(x) - net(x)).square().mean() for each in (slim.rebuild(net, plan), thin)]
    assert error[1] < 0.2 * error[0]


def test_same_seed_same_bits_and_positions_follow_the_seed(chain) -> None:
    net, _, plan = chain
    made = []
    for seed in (0, 0, 1):
        thin = slim.rebuild(net, plan)
        least_squares(thin, net, plan, images(), positions=3, seed=seed)
        made.append(state(thin))
        torch.manual_seed(seed + 5)
    assert same(made[0], made[1]) and not same(made[0], made[2])


def test_it_is_no_worse_than_plain_least_squares_where_neither_has_looked() -> None:
    """numpy's solution of the same regression, from the samples that were not held out."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(80, 3, 2, 4, generator=generator, dtype=torch.float64)
    truth = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    r = torch.einsum("npgd,gdo->npgo", z, truth) + torch.randn(80, 3, 2, 3, generator=generator) + 2
    equations = NormalEquations(2, 4, 3, constant=True)
    for part in (slice(0, 30), slice(30, 80)):
        equations.add(z[part], r[part])
    weights, constant, after = equations.solve()
    held_out = torch.arange(80) % 4 == 3
    error = total = 0.0
    for g in range(2):
        a = np.concatenate([z[..., g, :].numpy(), np.ones((80, 3, 1))], 2)
        b = r[..., g, :].numpy()
        fit = np.linalg.lstsq(a[~held_out].reshape(-1, 5), b[~held_out].reshape(-1, 3), rcond=None)[0]
        error += np.square(a[held_out] @ fit - b[held_out]).sum()
        mine = np.concatenate([weights[g].numpy(), constant[g].numpy()[None]])
        total += np.square(a[held_out] @ mine - b[held_out]).sum()
        np.testing.assert_allclose(mine, fit, atol=0.1)
    assert total == pytest.approx(after, rel=1e-9)
    assert after <= error * (1 + 1e-6) and after < equations.before


def test_a_layer_that_gains_nothing_keeps_its_bits() -> None:
    """Where held-out samples say the contrary of the others; and where nothing is lacking."""
    z = torch.randn(12, 1, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat_interleave(
        4, 0
    )
    r = z[..., :2] * torch.tensor([1.0, 1.0, 1.0, -1.0]).repeat(12)[:, None, None, None]
    equations = NormalEquations(1, 5, 2, constant=False)
    equations.add(z, r)
    weights, _, after = equations.solve()
    assert not weights.any() and after == equations.before > 0
    silent = alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    silent[0].weight.data[2], silent[0].bias.data[2] = 0.0, -1.0
    graph = slim.trace(silent, INPUTS)
    gone = np.arange(len(graph)) == graph.axes[("0.weight", 0)][2]
    thin = slim.rebuild(silent, graph.plan(gone))
    before = state(thin)
    (found,) = least_squares(thin, silent, graph.plan(gone), images())
    assert not found.kept and same(before, state(thin))


def test_a_forward_that_draws_random_numbers_draws_the_same_in_both_networks() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    net = alive(Noisy(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    net[0].weight.data[2], net[0].bias.data[2] = 0.0, -1.0
    graph = slim.trace(net, INPUTS)
    plan = graph.plan(np.arange(len(graph)) == graph.axes[("0.weight", 0)][2])
    thin = slim.rebuild(net, plan)
    before = state(thin)
    (found,) = least_squares(thin, net, plan, images())
    assert found.before == 0 and not found.kept and same(before, state(thin))


@pytest.mark.parametrize("residual", ["group", "select"])
def test_means_behind_sums_are_those_of_the_dense_network(residual: str) -> None:
    net = alive(PreActivation())
    graph = slim.trace(net, INPUTS, residual=residual)
    plan = slim.select(graph, slim.score(graph, "gamma"), ratio=0.4)
    thin = slim.rebuild(net, plan)
    data = images(4)
    found = least_squares(thin, net, plan, data)
    assert {"norm1", "last"} <= {each.module for each in found if each.kept}
    seen: dict[str, list[Tensor]] = {}
    for network in (net, thin):
        for name in ("norm1", "last"):
            norm, keep = network.get_submodule(name), plan.axes.get((f"{name}.weight", 0))

            def note(m: nn.Module, args: tuple[Tensor], out: Tensor, name: str = name, keep=keep) -> None:
                x = m.select(args[0]) if hasattr(m, "select") else args[0]
                mean = x.mean((0, 2, 3)) - m.running_mean
                seen.setdefault(name, []).append(mean[keep.kept] if keep and len(mean) == keep.size else mean)

            handle = norm.register_forward_hook(note)
            with torch.no_grad():
                network(torch.cat([part[np.arange(32) % 4 != 3] for part in data]))
            handle.remove()
    for whole, cut in seen.values():
        torch.testing.assert_close(cut, whole, atol=1e-8, rtol=0)


def test_shared_modules_and_weights() -> None:
    """A module that is called twice is one regression over both calls; a weight of two modules is left alone."""

    class Twice(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
            if tied:
                self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            x, y = torch.relu(self.a(x)), torch.relu(self.a(-x))
            return self.b(x) + self.b(y) + self.c(y)

    for tied, expected in ((False, ["b", "c"]), (True, [])):
        net = alive(Twice(tied))
        graph = slim.trace(net, INPUTS)
        plan = slim.select(graph, slim.score(graph, "l1"), ratio=0.3)
        found = least_squares(slim.rebuild(net, plan), net, plan, images())
        assert [each.module for each in found if each.kept] == expected


def test_what_follows_absorbing_fits_the_network_as_it_was(chain) -> None:
    """Not the one with the constants moved; in place or not, and each step evaluated by itself."""
    net, graph, plan = chain
    whole, data = state(net), images()
    expected = slim.rebuild(absorb(net, plan, graph, example_inputs=data[0]), plan)
    least_squares(expected, net, plan, data, 3)
    for in_place in (False, True):
        mine = copy.deepcopy(net)
        parameters = dict(mine.named_parameters())
        found = recover(
            mine, plan, graph, least_squares=3, batches=data, count=0, example_inputs=data[0],
            rebuild=(lambda n: slim.rebuild(n, plan, in_place=True)) if in_place else None,
        )  # fmt: skip
        assert [(s.name, s.kept) for s in found.steps] == [("absorb", True), ("least_squares", True)]
        assert "4 of 4 layers" in found.steps[1].reason
        assert same(state(found.network), state(expected))
        assert in_place or same(state(mine), whole)
        assert not in_place or all(p is parameters[n] for n, p in found.network.named_parameters())


@pytest.mark.parametrize("helps", [True, False])
def test_it_is_kept_only_where_it_helps(chain, helps: bool) -> None:
    net, _, plan = chain
    bare = slim.rebuild(net, plan)
    fitted = slim.rebuild(net, plan)
    least_squares(fitted, net, plan, images(), 2)

    def evaluate(network: nn.Module) -> float:
        return 0.5 if same(state(bare), state(network)) else (0.6 if helps else 0.5)

    result = slim.prune(
        net, INPUTS, criterion="l1", criterion_options={"normalize": "max"}, ratio=0.4, min_channels=2,
        recover={"absorb": False, "least_squares": 2, "batches": images, "count": 1, "evaluate": evaluate},
    )  # fmt: skip
    assert [(s.name, s.before, s.kept) for s in result.recovery] == [
        ("least_squares", 0.5, helps), ("recalibrate", 0.6 if helps else 0.5, False)
    ]  # fmt: skip
    assert same(state(result.model), state(fitted if helps else bare))
    with pytest.raises(SlimError, match="Did you mean least_squares"):
        slim.prune(net, INPUTS, ratio=0.4, recover={"least_square": 2})


def test_an_iterator_gives_both_steps_the_same_batches(chain) -> None:
    """The first of them left nothing to the second."""
    net, graph, plan = chain
    made = [recover(net, plan, graph, least_squares=3, batches=given, count=4) for given in (images(), iter(images()))]
    assert made[0].steps == made[1].steps and made[1].steps[2].reason == "not evaluated; 4 batches"
    assert same(state(made[0].network), state(made[1].network))
