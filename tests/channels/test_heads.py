"""Attention heads go whole, in q, k, v and the projection together, wherever the forward allows it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from tests.channels.laws import check_all, check_branches, close
from tests.channels.pieces import GroupedQueries

WIDTH, HEADS, EACH = 24, 4, 6


class Attention(nn.Module):
    """Self-attention over pixels. ``form`` says how its forward names its widths and computes the product."""

    def __init__(self, form: str, key_heads: int = HEADS) -> None:
        super().__init__()
        self.form, self.num_heads, self.key_heads, self.head_dim = form, HEADS, key_heads, EACH
        self.inner = HEADS * EACH
        self.q = nn.Linear(WIDTH, HEADS * EACH)
        self.k, self.v = (nn.Linear(WIDTH, key_heads * EACH) for _ in range(2))
        self.norm = nn.LayerNorm(EACH)
        self.bias = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.proj = nn.Linear(HEADS * EACH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        if self.form == "normed":
            q, k = self.norm(q), F.normalize(k, dim=-1)
        if self.key_heads != HEADS and self.form != "grouped":
            k, v = (t.repeat_interleave(self.num_heads // t.shape[1], 1) for t in (k, v))
        if self.form in ("written", "normed"):
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5 + self.bias
            mixed = scores.softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.form == "grouped")
        size = {"width": width, "attribute": self.inner}.get(self.form, -1)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, size))

    def heads(self, x: Tensor) -> Tensor:
        if self.form == "literal":
            return x.view(x.shape[0], x.shape[1], HEADS, EACH).transpose(1, 2)
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)


class Fused(nn.Module):
    """One layer for q, k and v, seen as (3, heads, width), as most vision transformers have it."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.num_heads, self.head_dim = order, HEADS, EACH
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * HEADS * EACH), nn.Linear(HEADS * EACH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        if self.order == "3hd":
            q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = self.qkv(x).view(n, length, self.num_heads, -1).transpose(1, 2).split(self.head_dim, -1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, self.num_heads * self.head_dim))


class Net(nn.Module):
    """A stem, attention between LayerNorms, an MLP on tensors that are not contiguous, a head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(4, WIDTH, 2, 2), attention
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.first(tokens))
        image = tokens.transpose(1, 2).view(n, c, h, w).permute(0, 2, 3, 1)  # not contiguous for the MLP
        image = image + self.down(F.gelu(self.up(self.second(image))))
        return self.head(image.mean((1, 2)))


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "fused": lambda: Attention("fused"),
    "attribute": lambda: Attention("attribute"),
    "written": lambda: Attention("written"),
    "normed": lambda: Attention("normed"),
    "qkv (3, h, d)": lambda: Fused("3hd"),
    "qkv (h, 3 d)": lambda: Fused("h3d"),
}


def _heads(graph: slim.ChannelGraph, attention: str = "attention") -> int:
    groups = graph.axes[(f"{attention}.proj.weight", 1)]
    return len({g for g in groups.tolist() if graph.prunable[g]})


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_heads_go_whole(name: str, share: float) -> None:
    net = Net(WHOLE[name]()).double()
    graph, plan = check_all(net, torch.randn(3, 4, 8, 8, dtype=torch.float64), share, 0)
    assert _heads(graph) == HEADS
    kept = plan.axes[("attention.proj.weight", 1)]
    assert len(kept.kept) % EACH == 0 and len(kept.kept) < HEADS * EACH
    assert graph.prunable[graph.axes[("up.weight", 0)]].all(), "the MLP's hidden channels"


@pytest.mark.parametrize("form", ["grouped", "written"])
def test_grouped_queries_go_with_their_keys(form: str) -> None:
    net = Net(Attention(form, key_heads=2)).double()
    if form == "written":
        net.attention.bias = nn.Parameter(torch.zeros(1, 1, 1, dtype=torch.float64))
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    graph, _ = check_all(net, x, 0.5, 0)
    if form == "grouped":
        assert _heads(graph) in (0, 2)
    if _heads(graph):
        removed = np.zeros(len(graph), bool)
        removed[graph.axes[("attention.k.weight", 0)][0]] = True
        plan = graph.plan(removed)
        assert len(plan.axes[("attention.q.weight", 0)].kept) == HEADS * EACH // 2
        close(slim.rebuild(net, plan)(x), slim.mask(net, plan)(x), "grouped queries")


@pytest.mark.parametrize("form", ["kernel", "repeat", "expand", "attribute"])
def test_keys_that_several_queries_share_go_with_them(form: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3), GroupedQueries(8, 3, 2, form), nn.Conv2d(8, 2, 1)).double()
    graph, _ = check_all(net, torch.randn(3, 4, 6, 6, dtype=torch.float64), 0.5, 0)
    keys, queries = graph.axes[("1.k.weight", 0)], graph.axes[("1.q.weight", 0)]
    assert graph.prunable[keys].all() and len(set(keys.tolist())) == 3
    assert queries.reshape(3, 6).tolist() == [[g] * 6 for g in keys[::3].tolist()]


def test_a_branch_whose_products_would_go_on_with_other_widths_stays() -> None:
    """Its layers pass the stream on, which the forward sees as four heads: more products, not none."""
    net = nn.Sequential(nn.Conv2d(4, 12, 3), GroupedQueries(12, 1, 3, "kernel"), nn.Conv2d(12, 2, 1)).double()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    graph, _ = check_all(net, x, 0.5, 0)
    assert all(check_branches(net, graph, x, seed) == 0 for seed in range(3))


@pytest.mark.parametrize("form", ["literal", "width"])
def test_heads_stay_where_the_forward_fixes_them(form: str) -> None:
    net = Net(Attention(form)).double()
    graph, _ = check_all(net, torch.randn(3, 4, 8, 8, dtype=torch.float64), 0.5, 0)
    assert _heads(graph) == 0 and "fixes the width" in graph.report()
    assert graph.prunable[graph.axes[("up.weight", 0)]].all(), "and nothing else does"


def test_fused_attention_scales_by_the_width_of_a_single_head() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(WIDTH, 10) for _ in range(3))
            self.proj = nn.Linear(10, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    graph, _ = check_all(Net(Single()).double(), torch.randn(3, 4, 8, 8, dtype=torch.float64), 0.5, 0)
    assert not graph.prunable[graph.axes[("attention.q.weight", 0)]].any()
    assert graph.prunable[graph.axes[("attention.v.weight", 0)]].all()


def test_two_heads_counts_are_told_apart_from_equal_widths() -> None:
    """Six heads of six: ``num_heads`` and ``head_dim`` hold the same number."""
    attention = Fused("3hd")
    attention.num_heads = attention.head_dim = 6
    attention.qkv, attention.proj = nn.Linear(WIDTH, 108), nn.Linear(36, WIDTH)
    graph, plan = check_all(Net(attention).double(), torch.randn(3, 4, 8, 8, dtype=torch.float64), 0.5, 0)
    assert _heads(graph) == 6 and set(plan.attributes["attention"]) == {"num_heads"}


class Named(nn.Module):
    """Attention whose number of heads is an attribute of any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, HEADS)
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * EACH) for _ in range(3))
        self.proj = nn.Linear(HEADS * EACH, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = getattr(self, self.name)
        q, k, v = (layer(x).unflatten(2, (heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_plan_is_refused_by_a_class_that_calls_its_number_otherwise() -> None:
    """It could run, with the thin layers in as many heads as the dense ones had."""
    plan = slim.prune(Named("heads"), torch.randn(2, 5, WIDTH), criterion="l1", ratio=0.5).plan
    assert slim.rebuild(Named("heads"), plan).heads < HEADS
    for function in (slim.rebuild, slim.mask):
        with pytest.raises(SlimError, match=r"Got the model without a whole number heads"):
            function(Named("head_count"), plan)
