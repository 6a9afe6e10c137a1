"""Bad calls of the public API and bad plans, and what their one line must name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import slim
from slim.channels import Plan
from slim.models import vgg

X = torch.zeros(1, 3, 8, 8)


def net() -> nn.Module:
    return vgg(widths=[8, "M", 8], num_classes=10)


def graph() -> slim.ChannelGraph:
    return slim.trace(net(), X)


def wider() -> slim.ChannelGraph:
    return slim.trace(vgg(widths=[16, "M", 8], num_classes=10), X)


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(net().parameters(), 0.1)


def cut(count: int = 2) -> Plan:
    """Without the first ``count`` channels of the first layer."""
    traced = graph()
    removed = np.zeros(len(traced), dtype=bool)
    removed[np.flatnonzero(traced.prunable)[:count]] = True
    return traced.plan(removed)


def edited(**changes: Any) -> str:
    return json.dumps({**json.loads(cut().to_json()), **changes})


def bare() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def not_a_number() -> nn.Module:
    broken = net()
    next(m for m in broken.modules() if isinstance(m, nn.BatchNorm2d)).weight.data[0] = float("nan")
    return broken


def picky(**options: Any) -> Callable[[], Any]:
    return lambda: slim.select(graph(), slim.score(graph()), **options)


CALLS: list[tuple[str, Callable[[], Any], str]] = [
    # Tracing
    ("trace: no module", lambda: slim.trace(vgg, X), "model"),
    ("trace: wrong channels", lambda: slim.trace(net(), torch.zeros(1, 4, 8, 8)), "inputs"),
    ("trace: wrong rank", lambda: slim.trace(net(), torch.zeros(8, 8)), "inputs"),
    ("trace: text for an input", lambda: slim.trace(net(), "image"), "input"),
    ("trace: nothing for an input", lambda: slim.trace(net(), None), "input"),
    ("trace: residual", lambda: slim.trace(net(), X, residual="groups"), "group"),
    ("trace: grouped", lambda: slim.trace(net(), X, grouped="hole"), "whole"),
    # Scores
    ("score: criterion", lambda: slim.score(graph(), "gama"), "gamma"),
    ("score: no criterion", lambda: slim.score(graph(), 3), "criterion"),  # type: ignore[arg-type]
    ("score: import path", lambda: slim.score(graph(), "no_such_package.rank"), "no_such_package"),
    ("score: normalize", lambda: slim.score(graph(), normalize="maximum"), "max"),
    ("score: reduce", lambda: slim.score(graph(), reduce="avg"), "reduce"),
    ("score: option", lambda: slim.score(graph(), "gamma", power=2), "power"),
    ("score: no data", lambda: slim.score(graph(), "taylor"), "loader"),
    ("score: empty data", lambda: slim.score(graph(), "taylor", loader=[]), "loader"),
    ("score: images alone", lambda: slim.score(graph(), "taylor", loader=[X]), "loader"),
    ("score: batches", lambda: slim.score(graph(), "taylor", loader=[(X, X)], batches=0), "batches"),
    ("score: NaN", lambda: slim.score(slim.trace(not_a_number(), X)), "finite"),
    ("score: no scale", lambda: slim.score(slim.trace(bare(), X)), "criterion"),
    ("score: a function of nothing", lambda: slim.score(graph(), lambda g: None), "NoneType"),  # type: ignore
    ("score: no pairs", lambda: slim.score(graph(), lambda g: [1, 2]), "pairs"),  # type: ignore[arg-type]
    ("score: too few values", lambda: slim.score(graph(), lambda g: [([0, 1], [1.0])]), "2 groups with 1"),
    ("score: no such group", lambda: slim.score(graph(), lambda g: [([0, 9999], [1, 2])]), "9999"),
    ("score: half a group", lambda: slim.score(graph(), lambda g: [([0.5], [1])]), "0.5"),
    ("score: text for values", lambda: slim.score(graph(), lambda g: [([0], ["a"])]), "pairs"),
    ("score: numbers for data", lambda: slim.score(graph(), "taylor", loader=[1, 2]), "int"),
    ("score: text for data", lambda: slim.score(graph(), "activation", loader=["a"]), "str"),
    ("score: a number for a loader", lambda: slim.score(graph(), "activation", loader=3), "loader"),
    ("score: seed", lambda: slim.score(graph(), "activation", loader=[X], seed="a"), "seed"),
    ("score: labels", lambda: slim.score(graph(), "taylor", loader=[(X, torch.tensor([99]))]), "99"),
    ("score: wrong channels", lambda: slim.score(graph(), "activation", loader=[torch.zeros(1, 4, 8, 8)]), "(1, 4, 8"),
    ("score: no graph", lambda: slim.score(net()), "graph"),  # type: ignore[arg-type]
    # Selection
    ("select: ratio 1", picky(ratio=1.0), "ratio must be in [0, 1)"),
    ("select: ratio below 0", picky(ratio=-0.5), "ratio must be in [0, 1)"),
    ("select: ratio NaN", picky(ratio=float("nan")), "ratio"),
    ("select: ratio text", picky(ratio="half"), "ratio"),
    ("select: no graph", lambda: slim.select(net(), slim.score(graph()), ratio=0.5), "graph"),  # type: ignore[arg-type]
    ("select: no scores", lambda: slim.select(graph(), "gamma", ratio=0.5), "scores"),  # type: ignore[arg-type]
    ("select: ignore a text", picky(ratio=0.5, ignore="features"), "ignore"),
    ("select: two budgets", picky(ratio=0.5, macs=0.5), "One target"),
    ("select: macs 0", picky(macs=0), "macs"),
    ("select: macs infinite", picky(macs=float("inf")), "macs"),
    ("select: params below 0", picky(params=-1), "params"),
    ("select: min_channels", picky(ratio=0.5, min_channels=0), "min_channels"),
    ("select: max_layer_ratio", picky(ratio=0.5, max_layer_ratio=2), "max_layer_ratio"),
    ("select: round_to", picky(ratio=0.5, round_to=1.5), "round_to"),
    ("select: ignore", picky(ratio=0.5, ignore=["classifer"]), "ignore"),
    ("select: ignore a number", picky(ratio=0.5, ignore=3), "ignore"),
    ("select: ignore numbers", picky(ratio=0.5, ignore=[3]), "prune.ignore"),
    ("select: overrides as a list", picky(ratio=0.5, overrides=[1]), "overrides"),
    ("select: overrides as a text", picky(ratio=0.5, overrides="a"), "overrides"),
    ("select: inexact", picky(ratio=0.5, inexact="maybe"), "inexact"),
    ("select: overrides", picky(ratio=0.5, overrides={"features.0": 3}), "override"),
    ("select: override of a name", picky(ratio=0.5, overrides={"features.0": {"ratoi": 0.3}}), "ratio"),
    ("select: strategy", picky(ratio=0.5, strategy="globl"), "global"),
    ("select: foreign scores", lambda: slim.select(graph(), slim.score(wider()), ratio=0.5), "scores"),
    ("prune: unknown option", lambda: slim.prune(net(), X, ratoi=0.5), "ratio"),
    ("prune: criterion", lambda: slim.prune(net(), X, criterion="gama", ratio=0.5), "gamma"),
    # Plans
    ("plan: no text", lambda: Plan.from_json(None), "plan"),  # type: ignore[arg-type]
    ("plan: empty", lambda: Plan.from_json(""), "plan"),
    ("plan: a list", lambda: Plan.from_json("[]"), "plan"),
    ("plan: binary", lambda: Plan.from_json(b"\xff\x00"), "plan"),
    ("plan: deep", lambda: Plan.from_json("[" * 100_000), "plan"),
    ("plan: version", lambda: Plan.from_json(edited(version=9)), "version 9"),
    ("plan: a billion channels", lambda: Plan.from_json(edited(sets=[[10**9, "ff"]])), "size 1000000000"),
    ("plan: an empty layer", lambda: Plan.from_json(edited(sets=[[8, "00"]] * 9)), "without channels"),
    ("plan: a set that is not there", lambda: Plan.from_json(edited(sets=[])), "set"),
    ("plan: mask and size", lambda: Plan.from_json(edited(sets=[[4, "ff"]] * 9)), "disagree"),
    ("plan: groups", lambda: Plan.from_json(edited(grouped={"features.0.weight": 0})), "group count"),
    ("plan: another network", lambda: slim.rebuild(vgg(depth=11), cut()), "expected width"),
    ("plan: applied twice", lambda: slim.rebuild(slim.rebuild(net(), cut()), cut()), "applied already"),
    ("plan: a layer that is not there", lambda: slim.mask(bare(), cut()), "lacks"),
    ("plan: a path", lambda: slim.rebuild(net(), Plan.from_json(edited(axes={"../../x": [[0, 0]]}))), "lacks"),
    ("plan: composed with itself", lambda: cut().then(cut()), "compose"),
    ("plan: compared with a number", lambda: cut().diff(3), "other"),  # type: ignore[arg-type]
    ("plan: followed by a number", lambda: cut().then(3), "later"),  # type: ignore[arg-type]
    ("plan: too few flags", lambda: graph().plan(np.zeros(3, dtype=bool)), "removed"),
    ("plan: everything goes", lambda: graph().plan(np.ones(len(graph()), dtype=bool)), "removed group"),
    ("rebuild: no plan", lambda: slim.rebuild(net(), None), "plan"),  # type: ignore[arg-type]
    ("rebuild: plan as text", lambda: slim.rebuild(net(), cut().to_json()), "plan"),  # type: ignore[arg-type]
    ("mask: no network", lambda: slim.mask(None, cut()), "model"),  # type: ignore[arg-type]
    ("rebuild: optimizer", lambda: slim.rebuild(net(), cut(), optimizer=sgd()), "in_place"),
    ("rebuild: a number for an optimizer",
     lambda: slim.rebuild(net(), cut(), in_place=True, optimizer=3), "optimizer"),  # type: ignore[arg-type]
    # Sparsity
    ("law: forecast too early", lambda: slim.sparsity.build("l1").forecast([0.1], momentum=0.9), "attach"),
    ("law: scales too early", lambda: slim.sparsity.build("target", ratio=0.5).scales(), "attach"),
    ("law: steps", lambda: slim.sparsity.build("l1").attach(net(), graph(), total_steps="a"), "total_steps"),  # type: ignore
    ("law: a name", lambda: slim.sparsity.install("l1", sgd()), "build"),  # type: ignore[arg-type]
    # Artifacts
    ("save: NaN", lambda: slim.save(Path("x.safetensors"), not_a_number()), "finite"),
    ("save: no place", lambda: slim.save("/proc/nowhere/x.safetensors", net()), "writable"),
    ("save: no network", lambda: slim.save("x.safetensors", None), "model"),  # type: ignore[arg-type]
    ("save: dense with a plan", lambda: slim.save("x.safetensors", net(), cut()), "width 8"),
    ("save: plan as a number", lambda: slim.save("x.safetensors", net(), 3), "plan"),  # type: ignore[arg-type]
    ("load: no file", lambda: slim.load("nowhere.safetensors", net()), "nowhere.safetensors"),
    ("load: a folder", lambda: slim.load(".", net()), "readable"),
]  # fmt: skip
"""(name, call, what the line must contain)."""
