"""Whole residual branches: which go, what rebuild leaves, and that it computes what the masked network computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
import slim.models
from slim.channels import Plan, count_macs
from slim.errors import SlimError
from tests.channels.laws import assert_unchanged, close, snapshot


class Block(nn.Module):
    """Two convolutions around a shortcut; ``act`` follows the sum."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += x
        return F.relu(out)


class Mlp(nn.Module):
    """A LayerNorm and an MLP beside the stream, as vision transformers have them, scaled by a parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 20), nn.Linear(20, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + self.scale * self.down(F.gelu(self.up(self.norm(tokens))))
        return tokens.permute(0, 3, 1, 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.blocks = nn.Sequential(Block(12, 8), Block(12, 10), Mlp(12), Block(12, 6))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().double()
    for i, block in enumerate(model.blocks):
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.1 + i, 0.4 + i)
                nn.init.normal_(module.bias)
    return model.eval()


X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_branch_is_found_with_its_own_channels(net: Net) -> None:
    graph = slim.trace(net, X)
    assert [(branch.name, len(inner)) for branch, inner in graph.branches] == [
        ("blocks.0", 8),
        ("blocks.1", 10),
        ("blocks.2", 20),
        ("blocks.3", 6),
    ]


@pytest.mark.parametrize("granularity", ["layer", "both"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_rebuild_computes_what_mask_computes(net: Net, granularity: str, ratio: float) -> None:
    before = snapshot(net)
    graph = slim.trace(net, X)
    chosen = slim.select_groups(graph, slim.score(graph), ratio=ratio, granularity=granularity)
    plan = graph.plan(chosen.removed)
    masked, thin = slim.mask(net, plan), slim.rebuild(net, plan)
    for training in (False, True):
        masked.train(training), thin.train(training)
        with torch.no_grad():
            close(thin(X), masked(X), f"training={training}")
    assert graph.macs(chosen.removed) == count_macs(thin, X)
    assert graph.params(chosen.removed) == sum(p.numel() for p in thin.parameters())
    layers = [m for m in thin.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert graph.depth(chosen.removed) == len(layers) <= graph.depth() == 10
    assert Plan.from_json(plan.to_json()) == plan and not plan.is_identity
    assert_unchanged(net, before)


class Mixer(nn.Module):
    """Tokens are mixed, then channels: what mixes tokens has them along the axis that layers make."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.channels = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).mT
        y = y + self.tokens(self.norm1(y).mT).mT
        return self.head((y + self.channels(self.norm2(y))).mean(1))


def test_layers_behind_a_branch_that_mixed_tokens_are_counted() -> None:
    model = Mixer().double()
    graph = slim.trace(model, X)
    (branch, inner), _ = graph.branches
    assert branch.name == "tokens"
    removed = np.zeros(len(graph), dtype=bool)
    removed[inner] = True
    assert graph.macs(removed) == count_macs(slim.rebuild(model, graph.plan(removed)), X)
    assert graph.peak_activation(removed) == graph.peak_activation()  # the patches'


@pytest.mark.parametrize("build", [slim.models.resnet, slim.models.preresnet])
def test_activations_in_place_leave_the_stream_alone(build: Callable[..., nn.Module]) -> None:
    """A branch that is gone may begin with one, as that of a pre-activation block does."""
    torch.manual_seed(0)
    model = build(depth=20, num_classes=10).double().eval()
    assert any(getattr(module, "inplace", False) for module in model.modules())
    result = slim.prune(model, X, ratio=0.4, granularity="layer")
    assert "zero" in result.plan.replaced.values()
    close(result.model(X), slim.mask(model, result.plan)(X), "in place")
    result.model.train()(X).sum().backward()


def test_the_block_with_the_smallest_gammas_goes_first(net: Net) -> None:
    graph = slim.trace(net, X)
    chosen = slim.select_groups(graph, slim.score(graph), ratio=0.25, granularity="layer")
    plan = graph.plan(chosen.removed)
    assert set(plan.replaced) == {f"blocks.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2")}
    assert plan.replaced["blocks.0.bn2"] == "zero" and chosen.achieved["ratio"] == 0.25
    thin = slim.rebuild(net, plan)
    entered = F.relu(thin.norm(thin.stem(X)))
    close(thin.blocks[0](entered), entered, "the identity is left")


def test_a_smaller_budget_keeps_a_subset(net: Net) -> None:
    graph = slim.trace(net, X)
    scores = slim.score(graph)
    removed = [slim.select_groups(graph, scores, macs=m, granularity="both").removed for m in (0.8, 0.5, 0.3)]
    for less, more in itertools.pairwise(removed):
        assert not (less & ~more).any()
        assert graph.macs(more) < graph.macs(less)
    graph.plan(removed[-1])


def test_channels_alone_never_empty_a_branch(net: Net) -> None:
    graph = slim.trace(net, X)
    plan = slim.select(graph, slim.score(graph), ratio=0.95)
    assert not plan.replaced


def test_a_block_can_be_kept(net: Net) -> None:
    graph = slim.trace(net, X)
    plan = slim.select(graph, slim.score(graph), ratio=0.5, granularity="layer", ignore=["blocks.0"])
    assert not any(name.startswith("blocks.0") for name in plan.replaced)


def test_plans_compose_and_are_saved(net: Net, tmp_path: Path) -> None:
    graph = slim.trace(net, X)
    first = slim.rebuild(net, slim.select(graph, slim.score(graph), ratio=0.5))
    graph = slim.trace(first, X)
    thin = slim.rebuild(first, slim.select(graph, slim.score(graph), ratio=0.5, granularity="layer"))
    slim.save(tmp_path / "thin.safetensors", thin)
    again = slim.load(tmp_path / "thin.safetensors", Net().double()).eval()
    close(again(X), thin(X), "loaded")


def test_in_place_takes_the_parameters_out_of_the_optimizer(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(X).sum().backward()
    optimizer.step()
    graph = slim.trace(net, X)
    plan = slim.select(graph, slim.score(graph), ratio=0.5, granularity="both")
    copy = slim.rebuild(net, plan)
    slim.rebuild(net, plan, in_place=True, optimizer=optimizer)
    close(net(X), copy(X), "in place")
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    assert set(optimizer.state) <= set(net.parameters())


def test_an_optimizer_that_keeps_its_list_of_parameters_forgets_those_that_are_gone(net: Net) -> None:
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = net(X).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    graph = slim.trace(net, X)
    plan = slim.select(graph, slim.score(graph), ratio=0.5, granularity="layer")
    with pytest.warns(UserWarning, match="starts anew"):
        slim.rebuild(net, plan, in_place=True, optimizer=optimizer)
    assert [id(p) for p in optimizer._params] == [id(p) for p in net.parameters()]


def test_a_removal_that_only_a_branch_allows_needs_the_whole_branch(net: Net) -> None:
    graph = slim.trace(net, X)
    removed = np.zeros(len(graph), bool)
    removed[graph.branches[0][1]] = True
    assert graph.plan(removed).replaced
    stem = graph.axes[("head.weight", 1)]
    removed[stem] = True
    with pytest.raises(SlimError, match=r"must be prunable|become empty"):
        graph.plan(removed)


def test_options_are_checked(net: Net) -> None:
    graph = slim.trace(net, X)
    scores = slim.score(graph)
    with pytest.raises(SlimError, match="granularity"):
        slim.select(graph, scores, ratio=0.5, granularity="block")
    with pytest.raises(SlimError, match="strategy"):
        slim.select(graph, scores, ratio=0.5, granularity="layer", strategy="marginal")


def test_the_report_says_how_deep_the_network_was_and_is(net: Net) -> None:
    report = slim.prune(net, X, ratio=0.5, granularity="layer").report
    assert report.depth == (10, 6) and "depth" in str(report)


def test_a_branch_that_is_divided_by_its_own_norm_stays() -> None:
    """Gone, it would be 0 / 0."""

    class Normed(Block):
        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(self.conv1(x)))
            return x + (out / out.flatten(1).norm(dim=1)[:, None, None, None] if self.normed else out / 2)

    for normed in (False, True):
        Normed.normed = normed
        graph = slim.trace(
            nn.Sequential(nn.Conv2d(3, 12, 1), Normed(12, 8), nn.Conv2d(12, 2, 1)), torch.zeros(1, 3, 8, 8)
        )
        assert len(graph.branches) == (not normed)


def test_a_branch_that_zeros_do_not_silence_stays() -> None:
    """A normalization without a scale, gated by sigmoid(0) = 1/2."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Conv2d(3, 3, 1), nn.Sequential(Body()), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.branch(x))

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.down, self.up = nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return x * self.up(F.relu(self.down(x))).sigmoid()

    assert not slim.trace(Held().double().eval(), X).branches


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_a_computed_weight_in_a_branch_that_goes(net: Net, kind: str) -> None:
    """The layer behind it silences the branch; zeros in what it is computed from would be 0 / 0."""
    block = net.blocks[0]
    block.conv1 = getattr(torch.nn.utils.parametrizations, kind)(block.conv1).eval()
    graph = slim.trace(net, X)
    removed = np.zeros(len(graph), dtype=bool)
    removed[next(inner for branch, inner in graph.branches if branch.name == "blocks.0")] = True
    plan = graph.plan(removed)
    assert "blocks.0.conv1" in plan.replaced
    close(slim.rebuild(net, plan)(X), slim.mask(net, plan)(X), kind)
