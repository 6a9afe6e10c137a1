"""The jobs: one network per seed, then every criterion and every schedule at equal MACs and equal epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import slim
from experiments.criteria.leave_one_out import correlations
from experiments.criteria.network import build
from experiments.criteria.training import INPUTS, Setting, accuracy, train
from slim.channels import ChannelGraph, Plan, count_macs
from slim.criteria import Scores
from slim.recovery import recalibrate
from slim.selection import passes, relative, soften

Job = Callable[[Setting, int], dict[str, Any]]
DATA = ("activation", "apoz", "taylor", "fisher", "combination")
# Row of the table -> criterion and its options. Options that are not the library's defaults are in the name.
CRITERIA: dict[str, dict[str, Any]] = {
    "gamma": {"criterion": "gamma"},
    "gamma / layer mean": {"criterion": "gamma", "normalize": "mean"},
    "bn_variance": {"criterion": "bn_variance"},
    "bn_variance rectified": {"criterion": "bn_variance", "rectified": True},
    "bn_mean": {"criterion": "bn_mean"},
    "bn_mean rectified": {"criterion": "bn_mean", "rectified": True},
    "l1": {"criterion": "l1", "normalize": "mean"},
    "l2": {"criterion": "l2", "normalize": "mean"},
    "geometric_median": {"criterion": "geometric_median", "normalize": "mean"},
    "activation": {"criterion": "activation", "normalize": "mean"},
    "apoz": {"criterion": "apoz"},
    "taylor": {"criterion": "taylor"},
    "taylor with beta": {"criterion": "taylor", "beta": True},
    "fisher": {"criterion": "fisher"},
    "fisher with beta": {"criterion": "fisher", "beta": True},
    "combination": {"criterion": "combination", "parts": {"taylor": 1.0, "gamma": 1.0}},
    "uniform": {"criterion": "uniform"},
    "random": {"criterion": "random"},
}
# Selection by score per MAC saved, against the plain threshold of the rows above.
MARGINAL = ("gamma", "taylor with beta", "fisher with beta")


def every_job() -> dict[str, Job]:
    """Name to job, in order; the first two make what the others start from."""
    jobs: dict[str, Job] = {"sparse": sparse, "dense": dense, "leave one out": leave_one_out}
    for name in CRITERIA:
        jobs[f"criterion/{name}"] = partial(one_shot, name=name)
    for name in MARGINAL:
        jobs[f"criterion/{name}, per MAC"] = partial(one_shot, name=name, strategy="marginal")
    jobs["schedule/iterative linear"] = partial(iterative, growth="linear")
    jobs["schedule/iterative cubic"] = partial(iterative, growth="cubic")
    jobs["schedule/soft"] = soft
    jobs["schedule/rewind"] = partial(control, fresh=False)
    jobs["schedule/scratch"] = partial(control, fresh=True)
    return jobs


def sparse(setting: Setting, seed: int) -> dict[str, Any]:
    """Sparse training: the network that every criterion ranks."""
    return {"test": accuracy(setting, trained(setting, seed), setting.test)}


def dense(setting: Setting, seed: int) -> dict[str, Any]:
    """The unpruned network, without L1, for as many epochs as everybody gets."""
    model = build(seed)
    train(setting, model, setting.total, seed)
    return {"test": accuracy(setting, model, setting.test), "macs": 1.0}


def leave_one_out(setting: Setting, seed: int) -> dict[str, Any]:
    """Rank correlation of every criterion with the loss that leaving out one channel group costs."""
    model = trained(setting, seed)
    graph = slim.trace(model, INPUTS)
    ranked = {name: scored(setting, graph, seed, **options) for name, options in CRITERIA.items()}
    return {"correlation": correlations(graph, ranked, setting.train.part(0, 512))}


def one_shot(setting: Setting, seed: int, *, name: str, strategy: str = "global") -> dict[str, Any]:
    """Rank, cut once, fine-tune."""
    model = trained(setting, seed)
    graph = slim.trace(model, INPUTS)
    begun = time.process_time()
    scores = scored(setting, graph, seed, **CRITERIA[name])
    seconds = time.process_time() - begun
    thin, plan = cut(setting, graph, scores, strategy=strategy)
    found = after_cut(setting, thin)
    train(setting, thin, setting.finetune_epochs, seed + 1000, peak=0.05)
    return found | finished(setting, thin, model, plan) | {"score_seconds": round(seconds, 3)}


def iterative(setting: Setting, seed: int, *, growth: str) -> dict[str, Any]:
    """Three cuts by gamma, the fine-tuning epochs shared among them."""
    dense_network = model = trained(setting, seed)
    before: float | None = None
    steps = passes("iterative", kind="macs", amount=setting.macs, count=3, growth=growth)
    left = setting.finetune_epochs
    found: dict[str, Any] = {}
    for i, step in enumerate(steps):
        graph = slim.trace(model, INPUTS)
        scores = scored(setting, graph, seed, criterion="gamma")
        thin, _ = cut(setting, graph, scores, macs=relative("macs", step.amount, before))
        before = count_macs(thin, INPUTS) / count_macs(dense_network, INPUTS)
        found = after_cut(setting, thin)
        epochs = left if i == len(steps) - 1 else max(1, setting.finetune_epochs // 4)
        left -= epochs
        train(setting, thin, max(1, epochs), seed + 1000 + i, peak=0.05)
        model = thin
    return found | finished(setting, model, dense_network, slim.channels.plan_of(model))


def soft(setting: Setting, seed: int) -> dict[str, Any]:
    """Silence the lowest gammas after every epoch of sparse training, cut at the end, fine-tune."""
    model = build(seed)
    graph = slim.trace(model, INPUTS)

    def silence(epoch: int) -> None:
        if epoch < setting.sparse_epochs:
            scores = scored(setting, graph, seed, criterion="gamma")
            soften(graph, slim.select_groups(graph, scores, **setting.limits).removed)

    train(setting, model, setting.sparse_epochs, seed, sparse=True, after_epoch=silence)
    thin, plan = cut(setting, graph, scored(setting, graph, seed, criterion="gamma"))
    found = after_cut(setting, thin)
    train(setting, thin, setting.finetune_epochs, seed + 1000, peak=0.05)
    return found | finished(setting, thin, model, plan)


def control(setting: Setting, seed: int, *, fresh: bool) -> dict[str, Any]:
    """The thin shape that gamma chose, from its own first weights (rewind) or fresh ones (scratch), all epochs."""
    model = trained(setting, seed)
    graph = slim.trace(model, INPUTS)
    plan = slim.select(graph, scored(setting, graph, seed, criterion="gamma"), **setting.limits)
    thin = slim.rebuild(build(seed + 500 if fresh else seed), plan)
    train(setting, thin, setting.total, seed + 1000)
    return finished(setting, thin, model, plan)


def trained(setting: Setting, seed: int) -> nn.Module:
    """The sparse network of a seed; trained once, then read from the cache."""
    stored = setting.cache / f"sparse-{seed}-{setting.sparse_epochs}-{len(setting.train)}.pt"
    model = build(seed)
    if stored.exists():
        model.load_state_dict(torch.load(stored))
    else:
        train(setting, model, setting.sparse_epochs, seed, sparse=True)
        torch.save(model.state_dict(), stored)
    return model.eval()


def scored(setting: Setting, graph: ChannelGraph, seed: int, *, criterion: str, **options: Any) -> Scores:
    """Scores by one of the rows; data-driven ones see 8 batches of 128 training images."""
    if criterion in DATA:
        options |= {"loader": setting.train.part(0, 1024).batches(128), "batches": 8}
    if criterion == "random":
        options["seed"] = seed
    return slim.score(graph, criterion, **options)


def cut(setting: Setting, graph: ChannelGraph, scores: Scores, **options: Any) -> tuple[nn.Module, Plan]:
    """The rebuilt network with BatchNorm recalibrated, and its plan."""
    plan = slim.select(graph, scores, **{**setting.limits, **options})
    thin = slim.rebuild(graph.model, plan)
    recalibrate(thin, setting.calibration())
    return thin, plan


def after_cut(setting: Setting, thin: nn.Module) -> dict[str, Any]:
    """Accuracy on held-out images before any fine-tuning."""
    return {"cut": accuracy(setting, thin, setting.held_out)}


def finished(setting: Setting, thin: nn.Module, model: nn.Module, plan: Plan | None) -> dict[str, Any]:
    """Test accuracy and size at the end."""
    dense_params = sum(p.numel() for p in build(0).parameters())
    widths = {m: kept for m, (_, kept) in plan.widths.items() if not m.endswith("norm")} if plan is not None else {}
    return {
        "test": accuracy(setting, thin, setting.test),
        "macs": count_macs(thin, INPUTS) / count_macs(build(0), INPUTS),
        "params": sum(p.numel() for p in thin.parameters()) / dense_params,
        "widths": widths,
    }
