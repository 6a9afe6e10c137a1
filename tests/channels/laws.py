"""What must hold for every network that surgery accepts, checked from outside: nothing here knows how a plan works."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  (its operations)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import slim
from slim.channels import ChannelGraph, Plan
from slim.errors import SlimError
from tests.channels.pieces import Einsum

EXACT = 1e-9  # of the largest value in the compared tensor, in float64


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that surgery must leave alone: bits, gradients, modes, flags, attributes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bits": {name: (id(t), t.detach().clone(), t.requires_grad, t.grad) for name, t in tensors.items()},
        "modules": {name: (type(m), m.training, repr(m) if name else "") for name, m in model.named_modules()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "random": torch.get_rng_state(),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """The caller's model is bit for bit what it was, and so is the random state."""
    after = snapshot(model)
    assert after["modules"] == before["modules"]
    assert after["hooks"] == before["hooks"]
    assert torch.equal(after["random"], before["random"]), "the random state moved"
    assert after["bits"].keys() == before["bits"].keys()
    for name, (identity, value, flag, grad) in before["bits"].items():
        now = after["bits"][name]
        assert now[0] == identity, f"{name} is another tensor"
        assert torch.equal(now[1], value), f"{name} has other values"
        assert now[2] == flag and now[3] is grad, f"{name} has another flag or gradient"


def close(got: Tensor, want: Tensor, what: str, tolerance: float = EXACT) -> None:
    """Equal shapes, and equal values to rounding."""
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} instead of {tuple(want.shape)}"
    if want.numel():
        error = (got - want).abs().max() / want.abs().max().clamp_min(1e-3)
        assert error <= tolerance, f"{what}: relative error {error:.2e}"


def removal(graph: ChannelGraph, share: float, seed: int) -> np.ndarray:
    """A random removal that keeps the promises a selection keeps: one channel per space, equal losses where balanced.

    A shared stream goes with its last reader (``residual="select"``), which can empty a layer that lost little or tip a
    balance: then half the share is tried.
    """
    removed = graph.closure(_loose_removal(graph, share, seed))
    emptied = any(removed[space.groups].all() for space in graph.spaces)
    tipped = any(len({int(removed[b[b >= 0]].sum()) for b in map(np.asarray, x.blocks)}) > 1 for x in graph.balance)
    if not (emptied or tipped):
        return removed
    return removal(graph, share / 2, seed) if share > 0.02 else np.zeros_like(removed)


def _loose_removal(graph: ChannelGraph, share: float, seed: int) -> np.ndarray:
    """Spaces lose at most ``share`` at random; balanced blocks lose the same number, each its own.

    What overlaps in more than one balance is left alone, here: the selection's own tests cover it.
    """
    rng = np.random.default_rng(seed)
    removed = np.zeros(len(graph), dtype=bool)
    free = graph.prunable & ~graph.inexact
    balanced: dict[int, int] = {}
    for index, balance in enumerate(graph.balance):
        for block in balance.blocks:
            for group in np.unique(block).tolist():
                balanced[group] = -1 if group in balanced else index
    for index, balance in enumerate(graph.balance):
        blocks = [np.asarray(block) for block in balance.blocks]
        groups = np.concatenate(blocks)
        if len(np.unique(groups)) < len(groups) or any(balanced[g] != index for g in groups.tolist()):
            continue
        candidates = [block[free[block]] for block in blocks]
        most = min(int(share * len(block)) if len(block) < len(blocks[0]) else 10**9 for block in candidates)
        most = min(most, *(min(len(c), len(b) - 1) for c, b in zip(candidates, blocks, strict=True)))
        count = min(most, int(rng.integers(1, len(blocks[0]) + 1)), int(np.ceil(share * len(blocks[0]))))
        for candidate in candidates:
            removed[rng.permutation(candidate)[: max(count, 0)]] = True
    for space in graph.spaces:
        loose = np.array([g for g in space.groups.tolist() if free[g] and g not in balanced], dtype=np.int64)
        left = len(space.groups) - int(removed[space.groups].sum())
        removed[rng.permutation(loose)[: min(int(np.ceil(share * len(loose))), left - 1)]] = True
    return removed


def _deformable(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


_NOT_COUNTED = {torch.ops.torchvision.deform_conv2d: _deformable}
"""Operations that PyTorch's counter has no formula for: a convolution that reads elsewhere costs what one does."""


def counted_macs(model: nn.Module, x: Tensor) -> int:
    """MACs of one forward by PyTorch's own counter, which does not see into attention's fused kernels everywhere."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False, custom_mapping=_NOT_COUNTED) as counter,
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
        ):
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2


def sliced_like(model: nn.Module, values: dict[str, Tensor], plan: Plan) -> nn.Module:
    """``values`` (shaped like the dense parameters and buffers) cut to the plan, as a thin network."""
    carrier = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*carrier.named_parameters(), *carrier.named_buffers()]:
            if name in values:
                tensor.copy_(values[name])
    return slim.rebuild(carrier, plan, in_place=True)


def check_forward(masked: nn.Module, thin: nn.Module, x: Tensor) -> None:
    """Eval mode: the thin network computes what the masked one computes."""
    masked.eval(), thin.eval()
    with torch.no_grad():
        close(thin(x), masked(x), "eval forward")


def check_training(dense: nn.Module, masked: nn.Module, thin: nn.Module, plan: Plan, x: Tensor) -> None:
    """Train mode: same forward, same gradients on the kept slices, same running statistics afterwards."""
    masked.train(), thin.train()
    out, want = thin(x), masked(x)
    close(out, want, "train forward")
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(0), dtype=want.dtype)
    (out * direction).sum().backward()
    (want * direction).sum().backward()
    grads = {name: p.grad for name, p in masked.named_parameters() if p.grad is not None}
    sliced = sliced_like(dense, grads | dict(masked.named_buffers()), plan)
    expected, statistics = dict(sliced.named_parameters()), dict(sliced.named_buffers())
    # Scaled by the largest gradient anywhere: behind a BatchNorm a bias has none but rounding.
    largest = max((float(g.abs().max()) for g in grads.values()), default=0.0)
    for name, parameter in thin.named_parameters():
        if parameter.grad is not None:
            gap = (parameter.grad - expected[name]).abs().max() if parameter.numel() else torch.zeros(())
            assert parameter.grad.shape == expected[name].shape
            assert gap <= 1e-8 * max(largest, 1e-3), f"gradient of {name}: off by {gap:.2e} of {largest:.2e}"
    for name, buffer in thin.named_buffers():
        if buffer.is_floating_point():
            close(buffer, statistics[name], f"running statistic {name}")


def check_plan(graph: ChannelGraph, removed: np.ndarray, plan: Plan, thin: nn.Module, x: Tensor) -> None:
    """Counts are exact, the JSON is whole, no layer is empty, and the plan fits only the dense network."""
    twin = Plan.from_json(plan.to_json())
    assert twin == plan and twin.hash == plan.hash and not twin.diff(plan)
    # torch.einsum multiplies, uncounted, where the axis it sums over has shrunk to one.
    if not any(isinstance(module, Einsum) and module.weight.shape[1] == 1 for module in thin.modules()):
        assert graph.macs(removed) == counted_macs(thin, x), "MACs"
    assert graph.params(removed) == sum(p.numel() for p in thin.parameters()), "parameters"
    for name, parameter in thin.named_parameters():
        assert parameter.numel() > 0, f"{name} is empty"
    if not plan.is_identity:
        for verb in (slim.mask, slim.rebuild):
            try:
                verb(thin, plan)
            except SlimError:
                continue
            raise AssertionError(f"{verb.__name__} took the same plan twice")


def check_identity(model: nn.Module, graph: ChannelGraph, x: Tensor) -> None:
    """Removing nothing changes nothing."""
    plan = graph.plan(np.zeros(len(graph), dtype=bool))
    assert plan.is_identity
    same = slim.rebuild(model, plan).eval()
    before, after = model.state_dict(), same.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def check_all(model: nn.Module, x: Tensor, share: float, seed: int, **options: Any) -> tuple[ChannelGraph, Plan]:
    """Every law on one network, one random removal. Returns what it did, for the caller's own questions."""
    model.eval()
    before = snapshot(model)
    graph = slim.trace(model, x, **options)
    removed = removal(graph, share, seed)
    plan = graph.plan(removed)
    masked, thin = slim.mask(model, plan), slim.rebuild(model, plan)
    assert_unchanged(model, before)
    check_identity(model, graph, x)
    check_plan(graph, removed, plan, thin, x)
    check_forward(masked, thin, x)
    check_training(model, masked, thin, plan, x)
    assert_unchanged(model, before)
    return graph, plan


def check_branches(model: nn.Module, graph: ChannelGraph, x: Tensor, seed: int) -> int:
    """Every law on a random half of the residual branches, gone whole. Returns how many went."""
    rng = np.random.default_rng(seed)
    chosen = [inner for _, inner in graph.branches if rng.random() < 0.5]
    if not chosen:
        return 0
    removed = np.zeros(len(graph), dtype=bool)
    for inner in chosen:
        removed[inner] = True
    plan = graph.plan(removed)
    assert plan.replaced, "a branch without channels is replaced"
    masked, thin = slim.mask(model, plan), slim.rebuild(model, plan)
    removed = graph.closure(removed)
    check_plan(graph, removed, plan, thin, x)
    check_forward(masked, thin, x)
    masked.train(), thin.train()
    close(thin(x), masked(x), "train forward")
    return len(chosen)


def lively(model: nn.Module) -> nn.Module:
    """Weights as after training: no zero, no one, statistics of their own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model
