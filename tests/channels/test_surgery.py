"""Plans as data, in-place surgery with optimizers, selection layers, and plans that compose."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import slim
from slim.channels import ChannelGraph, ChannelSelect, Plan, plan_of
from slim.errors import SlimError
from slim.models import densenet, preresnet, resnet, vgg
from tests.channels.laws import assert_unchanged, check_all, close, lively, removal, snapshot

X = torch.zeros(2, 3, 32, 32)


def small_resnet() -> nn.Module:
    return lively(resnet(depth=8, num_classes=10))


def cut(model: nn.Module, share: float = 0.5, seed: int = 0, **options: Any) -> tuple[ChannelGraph, Plan]:
    graph = slim.trace(model, X, **options)
    return graph, graph.plan(removal(graph, share, seed))


BUILDERS = {
    "resnet": lambda: resnet(depth=8),
    "preresnet": lambda: preresnet(depth=11),
    "densenet": lambda: densenet(depth=10),
}


@pytest.mark.parametrize("residual", ["group", "select", "keep"])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_treatment_of_streams_obeys_the_laws(name: str, residual: str) -> None:
    net = lively(BUILDERS[name]()).double()
    _, plan = check_all(net, torch.randn(3, 3, 32, 32, dtype=torch.float64), 0.6, 1, residual=residual)
    assert not plan.is_identity


def test_selection_layers_appear_only_where_streams_are_read_selectively() -> None:
    for residual, expected in (("group", False), ("select", True), ("keep", False)):
        net = lively(densenet(depth=10))
        _, plan = cut(net, residual=residual)
        thin = slim.rebuild(net, plan)
        assert any(isinstance(m, ChannelSelect) for m in thin.modules()) == expected
        extra = set(thin.state_dict()) - set(net.state_dict())
        assert all(name.endswith(".select.index") for name in extra)
        assert bool(extra) == expected


def blocked(groups: int) -> nn.Module:
    """Between two convolutions one with as many groups, depthwise where that is its width."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=groups, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


@pytest.mark.parametrize("residual", ["group", "select"])
@pytest.mark.parametrize("make", [lambda: densenet(depth=10), lambda: blocked(16), lambda: blocked(4)])
def test_plans_compose(make: Any, residual: str) -> None:
    """A cut of a thin network, told from the dense one: the same function, the dense widths, the layers in order."""
    net = lively(make()).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    first = slim.rebuild(net, cut(net, residual=residual)[1])
    second = slim.rebuild(first, cut(first, seed=1, residual=residual)[1])
    whole = plan_of(second)
    assert whole is not None
    stored = Plan.from_json(whole.to_json())
    with torch.no_grad():
        assert torch.equal(slim.rebuild(net, stored)(x), second(x))
    convolutions = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    for name, module in convolutions.items():
        if name in stored.widths:
            assert stored.widths[name] == (module.out_channels, second.get_submodule(name).out_channels)
    assert list(stored.widths) == list(whole.widths) == list(plan_of(first).widths)
    assert len(stored.widths) > 2


def test_a_plan_is_plain_data() -> None:
    net = small_resnet()
    graph, plan = cut(net)
    again = Plan.from_json(json.dumps(json.loads(plan.to_json())))
    assert again == plan and again.hash == plan.hash and hash(again) == hash(plan)
    assert plan.diff(again) == ""
    other = graph.plan(removal(graph, 0.3, 5))
    assert other != plan and "->" in plan.diff(other)
    assert slim.rebuild(small_resnet(), again).conv1.out_channels == slim.rebuild(net, plan).conv1.out_channels


def test_attributes_tell_the_truth() -> None:
    net = small_resnet()
    thin = slim.rebuild(net, cut(net)[1])
    for module in thin.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    assert f"Conv2d(3, {thin.conv1.out_channels}," in repr(thin)
    assert set(thin.state_dict()) == set(net.state_dict())


def test_a_plan_for_another_network_names_the_layer() -> None:
    net = small_resnet()
    _, plan = cut(net)
    thin = slim.rebuild(net, plan)
    with pytest.raises(SlimError, match=r"expected width \d+, found \d+.*applied already"):
        slim.rebuild(thin, plan)
    with pytest.raises(SlimError, match="which the model lacks"):
        slim.rebuild(vgg(depth=11), plan)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_place_surgery_keeps_parameters_groups_flags_and_state(name: str) -> None:
    net = small_resnet()
    net.conv1.weight.requires_grad_(False)
    decay = [p for p in net.parameters() if p.ndim > 1 and p.requires_grad]
    rest = [p for p in net.parameters() if p.ndim == 1]
    optimizer = OPTIMIZERS[name]([{"params": decay, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}])

    def step() -> None:
        optimizer.zero_grad()
        net.train()(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()

    for _ in range(2):
        step()
    _, plan = cut(net)
    reference = slim.rebuild(net, plan)
    names = {id(p): n for n, p in net.named_parameters()}
    states = {names[id(p)]: {k: v for k, v in s.items()} for p, s in optimizer.state.items()}
    assert slim.rebuild(net, plan, in_place=True, optimizer=optimizer) is net
    assert {id(p): n for n, p in net.named_parameters()} == names
    assert not net.conv1.weight.requires_grad
    for key, value in reference.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-2, 0.0]
    live = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(live) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    for p, state in optimizer.state.items():
        for key, value in state.items():
            old = states[names[id(p)]][key]
            if torch.is_tensor(value) and old.ndim:
                assert value.shape == p.shape
                assert set(value.flatten().tolist()) <= set(old.flatten().tolist())  # sliced, not reset
    step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("slab", [1, 40, 333])
def test_big_parameters_are_cut_slab_by_slab_to_the_same_numbers(
    slab: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vgg(num_classes=3, widths=[6, 9, "M", 7]).to(memory_format=layout)
    graph = slim.trace(model, torch.zeros(1, 3, 8, 8))
    plan = slim.select(graph, slim.score(graph, "l1"), ratio=0.4, strategy="layer")
    whole = slim.rebuild(model, plan)
    monkeypatch.setattr("slim.channels.surgery.SLAB", slab)
    slabs = slim.rebuild(model, plan)
    for (name, expected), found in zip(whole.state_dict().items(), slabs.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
        assert found.stride() == expected.stride(), name
    convolutions = [m.weight for m in slabs.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=layout) for w in convolutions)


def test_channels_last_stays_in_three_dimensions() -> None:
    layers = (nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 3))
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)
    thin = slim.prune(model, torch.zeros(1, 3, 6, 6, 6), ratio=0.5).model
    for layer in (thin[0], thin[3]):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last_3d) and not layer.weight.is_contiguous()


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_a_state_of_other_shapes_starts_anew_and_says_so(kind: Any) -> None:
    net = blocked(4)
    optimizer = kind(net.parameters(), lr=1e-3)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = net(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    _, plan = cut(net)
    with pytest.warns(UserWarning, match="cannot be cut and starts anew"):
        slim.rebuild(net, plan, in_place=True, optimizer=optimizer)
    optimizer.step(loss)
    for parameter, state in optimizer.state.items():
        if kind is torch.optim.Adafactor and parameter.ndim == 1:
            assert state["variance"].shape == parameter.shape and state["step"] == 2  # sliced, as ever


def test_what_torchs_own_pruning_keeps_follows_the_cut() -> None:
    net = small_resnet()
    torch_prune.l1_unstructured(net.conv1, "weight", 0.3)
    _, plan = cut(net)
    kept = plan.axes["conv1.weight_orig", 0].kept
    for thin in (slim.rebuild(net, plan), slim.rebuild(net, plan, in_place=True)):
        assert thin.conv1.weight.shape[0] == thin.conv1.out_channels == thin.conv1.weight_mask.shape[0] == len(kept)
        thin(X)


def test_optimizer_needs_in_place() -> None:
    net = small_resnet()
    with pytest.raises(SlimError, match="in_place"):
        slim.rebuild(net, cut(net)[1], optimizer=torch.optim.SGD(net.parameters(), lr=0.1))


class Keeping(nn.Module):
    """Keeps activations as attributes, as networks with losses on features do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.feature = torch.relu(self.norm(self.conv(x)))
        self.kept["all"] = [2 * self.feature, (self.feature,)]
        return self.head(self.feature)


def test_what_a_forward_keeps_with_its_graph_is_copied_without_it() -> None:
    net, x = Keeping().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net(x).sum().backward()
    feature, before = net.feature, snapshot(net)
    result = slim.prune(net, x, ratio=0.5, recover={"absorb": True})
    masked, thin = slim.mask(net, result.plan), slim.rebuild(net, result.plan)
    assert_unchanged(net, before)
    assert net.feature is feature and feature.grad_fn is not None
    copied = masked.feature
    assert torch.equal(copied, feature) and copied.grad_fn is None and copied.data_ptr() != feature.data_ptr()
    assert thin.conv.out_channels == result.model.conv.out_channels == 4
    close(thin.eval()(x), masked.eval()(x), "rebuilt")


def test_mask_zeroes_producers_and_consumers() -> None:
    net = small_resnet()
    before = snapshot(net)
    graph, plan = cut(net)
    masked = slim.mask(net, plan)
    assert_unchanged(net, before)
    tensors = dict(masked.named_parameters())
    for (name, dim), keep in plan.axes.items():
        if name in tensors:
            gone = np.setdiff1d(np.arange(keep.size), keep.kept)
            assert not tensors[name].index_select(dim, torch.from_numpy(gone)).any()
    assert graph.macs() > 0


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"format": "slim-plan"}', '{"format": "other", "version": 1}', "\x00", "[" * 100_000],
)
def test_a_file_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(SlimError, match="plan must be"):
        Plan.from_json(text)


@pytest.mark.parametrize("spoil", ["huge", "mask", "empty", "index", "groups", "widths"])
def test_a_plan_that_lies_is_refused(spoil: str) -> None:
    body = json.loads(cut(small_resnet())[1].to_json())
    if spoil == "huge":
        body["sets"][0][0] = 10**9
    elif spoil == "mask":
        body["sets"][0][1] += "00"
    elif spoil == "empty":
        body["sets"][0][1] = "00" * (len(body["sets"][0][1]) // 2)
    elif spoil == "index":
        next(iter(body["axes"].values()))[0][1] = 10**6
    elif spoil == "groups":
        body["regroup"] = {"conv1": 10**12}
    else:
        body["widths"] = {"conv1": "wide"}
    with pytest.raises(SlimError, match="plan must be"):
        Plan.from_json(json.dumps(body))


class Expanded(nn.Module):
    """A buffer whose elements are one number in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("scale", torch.ones(1, 1, 1).expand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x) * self.scale)


@torch.inference_mode()
def test_a_masked_network_can_be_trained_and_has_expanded_buffers() -> None:
    net, x = Expanded(), torch.randn(2, 3, 4, 4)
    graph = slim.trace(net, x)
    assert graph.prunable.sum() == 8
    plan = slim.select(graph, slim.score(graph, criterion="l1"), ratio=0.5)
    masked = slim.mask(net, plan)
    close(masked(x), slim.rebuild(net, plan)(x), "expanded", 1e-5)
    assert net.scale.sum() == 8 and not any(t.is_inference() for t in masked.state_dict().values())
