"""The mathematics of experiments/sparsity: zeros, factors, three values, and the bytes of their files."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from experiments.nocliff.data import Images
from experiments.nocliff.network import vgg
from experiments.sparsity import jobs, measure, methods, sizes, table, training

TINY: tuple[int | str, ...] = (4, "M", 8, "M", 12)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Sequential:
    return vgg(TINY).eval()


@given(st.integers(1, 4), st.integers(1, 6), st.sampled_from([1, 3]), st.booleans())
def test_low_rank_at_full_rank_is_the_layer(cin: int, cout: int, kernel: int, bias: bool) -> None:
    conv = nn.Conv2d(cin, cout, kernel, stride=2, padding=1, bias=bias).double()
    x = torch.randn(2, cin, 7, 6, dtype=torch.float64)
    pair = methods.low_rank(conv, min(cout, conv.weight[0].numel())).double()
    assert torch.allclose(pair(x), conv(x), atol=1e-5)


def test_low_rank_is_the_best_of_its_rank() -> None:
    conv = nn.Conv2d(6, 8, 3, bias=False)
    first, second = methods.low_rank(conv, 3)
    product = (second.weight.flatten(1) @ first.weight.flatten(1)).detach()
    lost = torch.linalg.svdvals(conv.weight.detach().flatten(1))[3:].square().sum().sqrt()
    assert torch.linalg.norm(conv.weight.detach().flatten(1) - product).item() == pytest.approx(lost.item(), rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_ranks_use_the_budget_and_no_more(share: float) -> None:
    net = training.started(0)
    total = sum(m.weight.numel() for m in methods.layers(net))
    methods.factor(net, methods.ranks(net, 1 - share))
    left = sum(m.weight.numel() for m in methods.layers(net))
    assert 0.98 * (1 - share) * total < left <= (1 - share) * total


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=30).filter(any))
def test_ternary_is_a_projection_of_three_values(values: list[float]) -> None:
    weight = torch.tensor(values)
    three = methods.ternary(weight)
    large = weight.abs() > 0.7 * weight.abs().mean()
    assert torch.equal(three != 0, large)
    assert torch.equal(three.sign(), weight.sign() * large)
    # The scale is the least-squares one for this set of large weights.
    assert torch.allclose(three.abs().max(), (weight.abs() * large).sum() / large.sum())
    assert torch.allclose(methods.ternary(three), three)


def test_ternary_lets_the_gradient_straight_through(net: nn.Sequential) -> None:
    methods.make_ternary(net)
    net(X).sum().backward()
    layer = methods.layers(net)[0]
    full = layer.parametrizations.weight.original
    weight = methods.ternary(full.detach()).requires_grad_()
    classifier = methods.layers(net)[-1]
    x = net[5:-1](torch.nn.functional.conv2d(net[:4](X), weight, padding=1))
    rest = torch.nn.functional.linear(x, classifier.weight, classifier.bias)
    (expected,) = torch.autograd.grad(rest.sum(), weight)
    assert full.grad.abs().max() > 0 and torch.allclose(full.grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_unstructured_reaches_its_share_and_keeps_its_zeros(net: nn.Sequential, whole: bool) -> None:
    before = {}
    for share in (0.3, 0.45, 0.5):
        methods.unstructured(net, share, whole=whole)
        for i, layer in enumerate(methods.layers(net)):
            assert i not in before or not layer.weight[before[i]].any()
            before[i] = layer.weight == 0
    methods.settle(net)
    flat = torch.cat([layer.weight.flatten() for layer in methods.layers(net)])
    assert (flat == 0).float().mean() == pytest.approx(0.5, abs=1e-6)
    if not whole:
        assert all(density == pytest.approx(0.5, abs=0.01) for density in methods.densities(net))
    assert not any("mask" in key or "orig" in key for key in net.state_dict())


def test_one_half_of_the_weights_goes_whichever_way() -> None:
    gone = {}
    for name in ("global", "layer", "2:4"):
        net = training.started(0)
        if name == "2:4":
            methods.two_four(net)
        else:
            methods.unstructured(net, 0.5, whole=name == "global")
        gone[name] = sum(int((m.weight == 0).sum()) for m in methods.layers(net))
    assert len(set(gone.values())) == 1


@pytest.mark.parametrize("size", [(4, 8), (4, 8, 3, 3)])
def test_two_four_keeps_the_two_largest_of_four_input_channels(size: tuple[int, ...]) -> None:
    weight = torch.randn(size)
    kept = weight * methods.two_four_mask(weight)
    four = weight.movedim(1, -1).reshape(-1, 4)
    best = four.abs().sort(dim=1, descending=True).values[:, :2].sum(1)
    assert torch.allclose(kept.movedim(1, -1).reshape(-1, 4).abs().sum(1), best)
    assert torch.equal(kept != 0, methods.two_four_mask(weight) != 0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_forms_hold_the_weights_in_the_bytes_they_say(net: nn.Sequential) -> None:
    methods.two_four(net)
    methods.settle(net)
    weight = methods.layers(net)[0].weight.detach()
    rows = sizes.compressed_rows(weight)
    again = torch.sparse_csr_tensor(
        rows["starts"], rows["columns"], rows["values"], weight.flatten(1).shape, check_invariants=True
    )
    assert torch.equal(again.to_dense(), weight.flatten(1))
    # Eight bytes for each weight that is left, four for each row and one more.
    assert sum(t.nbytes for t in rows.values()) == 8 * weight.count_nonzero() + 4 * (len(weight) + 1)
    form = sizes.two_four_form(weight)
    four = torch.zeros(weight.numel() // 4, 4)
    four.scatter_(1, sizes.unpacked(form["places"], weight.numel() // 2).reshape(-1, 2), form["values"].reshape(-1, 2))
    assert torch.equal(four, weight.movedim(1, -1).reshape(-1, 4))
    assert sum(t.nbytes for t in form.values()) == weight.numel() // 2 * 4 + weight.numel() // 8
    three = methods.ternary(weight)
    codes = sizes.ternary_form(three)
    assert torch.equal(
        (sizes.unpacked(codes["codes"], weight.numel()) - 1.0).reshape(three.shape) * codes["scale"], three
    )
    assert codes["codes"].nbytes == weight.numel() // 4


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_two_bits_are_packed_and_unpacked(codes: list[int]) -> None:
    data = sizes.packed(torch.tensor(codes))
    assert len(data) == -(-len(codes) // 4) and sizes.unpacked(data, len(codes)).tolist() == codes


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_csr_network_computes_the_same(net: nn.Sequential) -> None:
    methods.unstructured(net, 0.8, whole=True)
    methods.settle(net)
    with torch.inference_mode():
        expected = net(X)
        assert torch.allclose(measure.in_csr(net)(X), expected, atol=1e-5)


def test_shape_builds_what_is_timed_again() -> None:
    net = training.started(0)
    methods.factor(net, methods.ranks(net, 0.5))
    again = measure.shaped(jobs.shape(net))
    assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]
    net = training.started(0)
    methods.unstructured(net, 0.8, whole=True)
    methods.settle(net)
    assert methods.densities(measure.shaped(jobs.shape(net))) == pytest.approx(methods.densities(net), abs=1e-3)
    assert jobs.nonzero_macs(measure.shaped(jobs.shape(net))) == pytest.approx(jobs.nonzero_macs(net), rel=1e-3)


def test_uniform_is_the_widest_within_the_budget() -> None:
    for kept in (0.5, 0.2):
        share = jobs.parameters(jobs.uniform(kept)) / jobs.parameters(training.WIDTHS)
        assert 0.9 * kept < share <= kept


@pytest.mark.parametrize("how", ["zeros", "factors", "ternary"])
def test_training_goes_on_from_a_kept_moment(tmp_path, monkeypatch, how: str) -> None:
    """Two halves end with the bits of one training; a network changed at the cut keeps its form."""
    monkeypatch.setattr(training, "WIDTHS", TINY)
    images = Images(torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8), torch.randint(0, 10, (24,)))
    setting = training.Setting(images, images, tmp_path, epochs=3, cut=1)
    whole = training.started(0, TINY)
    moments = training.train(setting, whole, 0, keep_at=(1,))
    half = training.started(0, TINY)
    half.load_state_dict(moments[1]["weights"])
    training.train(setting, half, 0, kept=moments[1])
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), half.state_dict().values(), strict=True))

    half.load_state_dict(moments[1]["weights"])
    change = {
        "zeros": lambda *a: jobs.zeros(*a, share=0.5, whole=True),
        "factors": lambda *a: jobs.factors(*a, share=0.5),
        "ternary": jobs.ternary,
    }[how]
    training.train(setting, half, 0, kept=moments[1], between=lambda epoch, opt: change(setting, half, epoch, opt))
    methods.settle(half)
    weights = [layer.weight for layer in methods.layers(half)]
    if how == "zeros":
        assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() for w in weights) // 2
    elif how == "ternary":
        assert all(len(w.unique()) <= 3 for w in weights)
    else:
        assert len(weights) == 1 + 2 * 2


def test_table_compares_with_dense_of_the_same_seed() -> None:
    one = {"removed": 0.5, "macs": 1.0, "nonzero_macs": 0.5, "bytes": {"dense": 1000, "csr": 2000, "zipped": 500}}
    found = {"dense/s0": {"accuracy": 70.0}, "dense/s1": {"accuracy": 72.0}}
    found |= {f"2:4 50%/s{s}": one | {"accuracy": a} for s, a in enumerate((69.0, 71.0))}
    line = table.sizes(found).splitlines()[-1]
    assert "| -1.00 ± 0.00 | 50% | 100% | 50% | 1 | 2 | 0 |" in line
