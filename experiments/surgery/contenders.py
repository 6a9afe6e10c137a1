"""The same job done twice: 50% of the channels out of a network by BatchNorm scale, by slim and by Torch-Pruning."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

import slim

Steps = dict[str, float]


def dense_network(name: str) -> nn.Module:
    """A network in eval mode with distinct scales: gamma uniform in (0, 1), everything else its default.

    A torchvision classifier, or what a path of the coverage's catalog names (``timm/resnet/resnet18``).
    Auxiliary heads are left out: in eval mode they do not run, so neither tool could see them.
    """
    from torchvision import models

    if "/" in name:
        from experiments.coverage.catalog import build

        model, _ = build(name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.uniform_(module.weight)
        return model

    aux = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, weights=None, **aux).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    return model


def with_slim(model: nn.Module, example: torch.Tensor, criterion: str) -> tuple[nn.Module, Steps]:
    """Trace, score, select, rebuild. Returns a new network; ``model`` stays whole."""
    marks = [time.perf_counter()]
    graph = slim.trace(model, example)
    marks.append(time.perf_counter())
    scores = slim.score(graph, criterion=criterion)
    plan = slim.select(graph, scores, ratio=0.5)
    marks.append(time.perf_counter())
    thin = slim.rebuild(model, plan)
    marks.append(time.perf_counter())
    names = ("trace", "rank", "rebuild")
    return thin, {name: marks[i + 1] - marks[i] for i, name in enumerate(names)} | {"total": marks[-1] - marks[0]}


def with_torch_pruning(model: nn.Module, example: torch.Tensor, criterion: str) -> tuple[nn.Module, Steps]:
    """Dependency graph, global ranking, one step. Changes ``model`` in place; the classifier's outputs are protected.

    The plain pruner with BNScaleImportance ranks as BNScalePruner does and is the faster of the two: it does not
    collect every group once more for a regularizer that surgery alone never uses.
    """
    import torch_pruning as tp

    heads = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = tp.importance.BNScaleImportance() if criterion == "gamma" else tp.importance.MagnitudeImportance()
    start = time.perf_counter()
    pruner = tp.pruner.MetaPruner(
        model, example, importance=importance, global_pruning=True, pruning_ratio=0.5, ignored_layers=heads
    )
    traced = time.perf_counter()
    pruner.step()
    end = time.perf_counter()
    return model, {"trace": traced - start, "rank and rebuild": end - traced, "total": end - start}


CONTENDERS: dict[str, Callable[[nn.Module, torch.Tensor, str], tuple[nn.Module, Steps]]] = {
    "slim": with_slim,
    "torch-pruning": with_torch_pruning,
}
