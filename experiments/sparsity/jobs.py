"""The jobs: one network made small in one way from one seed, each in the same number of epochs on the same images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slim
from experiments.nocliff.network import vgg
from experiments.sparsity import int8, methods, sizes
from experiments.sparsity.training import EXAMPLE, WIDTHS, Setting, accuracy, started, train
from experiments.store import Store
from slim.channels import count_macs
from slim.sparsity import build

RESULTS = Store(Path(__file__).parent / "results.json")
Job = Callable[[Setting], dict[str, Any]]
HALF, MORE = 0.5, 0.8  # of the weights removed: 2:4 allows nothing but one half
L1 = {"lam": 1e-3}


def every_job(seeds: int = 3) -> dict[str, Job]:
    """Name to job: seed by seed, of each what all methods can remove first; the control of `thin` last."""
    found: dict[str, Job] = {}
    for seed in range(seeds):
        found[f"dense/s{seed}"] = partial(dense, seed=seed)
        for share in (HALF, MORE):
            found |= {f"{name} {share:.0%}/s{seed}": job for name, job in at_share(seed, share).items()}
            if share == HALF:
                found[f"2:4 {HALF:.0%}/s{seed}"] = partial(from_cut, seed=seed, how=two_four, form=sizes.two_four_form)
                found[f"ternary/s{seed}"] = partial(from_cut, seed=seed, how=ternary, form=sizes.ternary_form)
                found[f"int8/s{seed}"] = partial(quantized, seed=seed, of="dense")
            name = f"slimming, target {share:.0%}"
            found[f"{name}, int8/s{seed}"] = partial(quantized, seed=seed, of=name)
    for share, seed in itertools.product((HALF, MORE), range(seeds)):
        found[f"thin, not taught {share:.0%}/s{seed}"] = partial(thin, seed=seed, share=share, taught=False)
    return found


def at_share(seed: int, share: float) -> dict[str, Job]:
    """What can remove any share of the weights."""
    return {
        "unstructured, global": partial(from_cut, seed=seed, how=partial(zeros, share=share, whole=True)),
        "slimming, target": partial(target, seed=seed, share=share),
        "filters, L1 norm": partial(from_cut, seed=seed, how=partial(filters, share=share)),
        "low rank": partial(from_cut, seed=seed, how=partial(factors, share=share)),
        "thin, taught": partial(thin, seed=seed, share=share, taught=True),
        "unstructured, per layer": partial(from_cut, seed=seed, how=partial(zeros, share=share, whole=False)),
        "slimming, L1": partial(l1, seed=seed, share=share),
    }


def dense(setting: Setting, seed: int) -> dict[str, Any]:
    """The network as it is, all epochs; keeps the moments that the other jobs go on from."""
    model = started(seed)
    for epoch, moment in train(setting, model, seed, keep_at=(setting.branch, setting.cut)).items():
        torch.save(moment, setting.cache / f"dense-s{seed}-e{epoch}.pt")
    return finished(setting, model, f"dense/s{seed}")


def from_cut(setting: Setting, seed: int, how: Any, form: Any = None) -> dict[str, Any]:
    """The dense network after ``setting.cut`` epochs, changed by ``how`` there and between the epochs that are left."""
    model, kept = _moment(setting, seed, setting.cut)
    train(setting, model, seed, kept=kept, between=partial(how, setting, model))
    methods.settle(model)
    return finished(setting, model, None, form)


def zeros(setting: Setting, model: nn.Module, epoch: int, optimizer: Any, *, share: float, whole: bool) -> None:
    """Iterative: 60% of the zeros at the cut, 90% an epoch later, all after two, one epoch left without a change."""
    steps = {setting.cut: 0.6, setting.cut + 1: 0.9, setting.cut + 2: 1.0}
    if epoch in steps:
        methods.unstructured(model, steps[epoch] * share, whole=whole)


def two_four(setting: Setting, model: nn.Module, epoch: int, optimizer: Any) -> None:
    """All at the cut."""
    if epoch == setting.cut:
        methods.two_four(model)


def ternary(setting: Setting, model: nn.Module, epoch: int, optimizer: Any) -> None:
    """Three values from the cut on; the full weights go on beneath."""
    if epoch == setting.cut:
        methods.make_ternary(model)


def factors(setting: Setting, model: nn.Sequential, epoch: int, optimizer: Any, *, share: float) -> None:
    """SVD at the cut, the same share of each layer; the factors begin without momentum."""
    if epoch == setting.cut:
        methods.factor(model, methods.ranks(model, 1 - share))
        model.train()
        renew(optimizer, model)


def filters(setting: Setting, model: nn.Module, epoch: int, optimizer: Any, *, share: float) -> None:
    """The filters of smallest L1 norm over their layer's mean go at the cut (Li et al. 2017)."""
    if epoch == setting.cut:
        graph = slim.trace(model, EXAMPLE)
        plan = slim.select(graph, slim.score(graph, "l1", normalize="mean"), params=1 - share, max_layer_ratio=0.9)
        slim.rebuild(model, plan, in_place=True, optimizer=optimizer)


def l1(setting: Setting, seed: int, *, share: float) -> dict[str, Any]:
    """Network Slimming as published: L1 on gamma until the cut, ranked by gamma, fine-tuned."""
    model = started(seed)
    graph = slim.trace(model, EXAMPLE)

    def between(epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == setting.cut:
            plan = slim.select(graph, slim.score(graph, "gamma"), params=1 - share, max_layer_ratio=0.9)
            slim.rebuild(model, plan, in_place=True, optimizer=optimizer)

    train(setting, model, seed, between=between, penalty=build("l1", **L1), graph=graph, sparse_epochs=setting.cut)
    return finished(setting, model)


def target(setting: Setting, seed: int, *, share: float) -> dict[str, Any]:
    """Network Slimming told its budget: what will go shrinks to zero meanwhile, zeros go between epochs.

    Channels are compared within their layer (``balance=1``), as the filters of `filters` are.
    """
    model, kept = _moment(setting, seed, setting.branch)
    graph = slim.trace(model, EXAMPLE)
    penalty: Any = build("target", params=1 - share, balance=1.0)

    def between(epoch: int, optimizer: torch.optim.Optimizer) -> None:
        nonlocal graph
        gone = penalty.removed()
        if gone.any():
            slim.rebuild(model, graph.plan(gone), in_place=True, optimizer=optimizer)
            graph = slim.trace(model, EXAMPLE)
            penalty.resize(model, graph)

    train(setting, model, seed, kept=kept, between=between, penalty=penalty, graph=graph)
    return finished(setting, model, f"slimming, target {share:.0%}/s{seed}")


def thin(setting: Setting, seed: int, *, share: float, taught: bool) -> dict[str, Any]:
    """The same share of every width, fresh weights, all epochs; taught by the dense network after its own."""
    model = started(seed, uniform(1 - share))
    teacher = load(setting, f"dense/s{seed}") if taught else None
    train(setting, model, seed, teacher=teacher)
    return finished(setting, model)


def uniform(kept: float) -> tuple[int | str, ...]:
    """The widest network of equally scaled widths within ``kept`` of the parameters."""
    budget = kept * parameters(WIDTHS)
    found: tuple[int | str, ...] = ()
    for percent in itertools.count(int(100 * kept)):
        widths = tuple(w if isinstance(w, str) else max(1, round(percent / 100 * w)) for w in WIDTHS)
        if parameters(widths) > budget:
            return found
        found = widths
    raise AssertionError("unreachable")


def parameters(widths: tuple[int | str, ...]) -> int:
    """Number of parameters of the network of these widths."""
    return sum(p.numel() for p in vgg(widths).parameters())


def quantized(setting: Setting, seed: int, *, of: str) -> dict[str, Any]:
    """ONNX Runtime's static int8 of a finished network, no epoch more."""
    model = load(setting, f"{of}/s{seed}")
    data = int8.quantize(model, setting.train[:500])
    found = finished(setting, model)
    found["accuracy"] = int8.accuracy(data, setting.test)
    found["bytes"] = {"own": len(data)}
    found["shape"]["int8"] = True
    return found


def renew(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """The optimizer holds the parameters that ``model`` has now; those it knows keep their momentum."""
    alive = list(model.parameters())
    for gone in set(optimizer.state) - set(alive):
        del optimizer.state[gone]
    optimizer.param_groups[0]["params"] = alive


def finished(setting: Setting, model: nn.Module, name: str | None = None, form: Any = None) -> dict[str, Any]:
    """Accuracy and sizes; with a name the network is kept.

    ``removed``: share of the dense network's weights, the first convolution's left out. ``macs``: what dense kernels
    do; ``nonzero_macs``: what is left of it where weights are not zero. Both relative to the dense network.
    """
    if name is not None:
        torch.save(model, setting.cache / f"{name.replace('/', '-')}.pt")
    full = started(0)
    left = sum(int((m.weight != 0).sum()) for m in methods.layers(model))
    found: dict[str, Any] = {
        "accuracy": accuracy(model, setting.test),
        "removed": 1 - left / sum(m.weight.numel() for m in methods.layers(full)),
        "macs": count_macs(model, EXAMPLE) / count_macs(full, EXAMPLE),
        "nonzero_macs": nonzero_macs(model) / count_macs(full, EXAMPLE),
        "bytes": sizes.bytes_of(model),
        "shape": shape(model),
    }
    if form is not None:
        found["bytes"]["own"] = sizes.own(model, form)
    return found


def nonzero_macs(model: nn.Module) -> float:
    """Multiply-accumulates whose weight is not zero, of one image."""
    found = 0.0
    handles = []

    def count(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal found
        places = out[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        found += places * int((layer.weight != 0).sum())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(count))
    with torch.no_grad():
        model.eval()(EXAMPLE)
    for handle in handles:
        handle.remove()
    return found


def shape(model: nn.Module) -> dict[str, Any]:
    """What latency depends on: widths, ranks of the factored layers, densities. `measure.shaped` builds it again."""
    places = list(model.children())
    pools = [i for i, m in enumerate(places) if isinstance(m, nn.MaxPool2d)]
    widths: list[int | str] = []
    for i, m in enumerate(places):
        if isinstance(m, nn.BatchNorm2d):
            widths.append(m.num_features)
        elif i in pools:
            widths.append("M")
    found: dict[str, Any] = {"widths": widths}
    factored = [m for m in places if isinstance(m, nn.Sequential)]
    if factored:
        found["ranks"] = [m[0].out_channels for m in factored]
    density = methods.densities(model)
    if min(density) < 1:
        found["density"] = [round(d, 4) for d in density]
    return found


def load(setting: Setting, name: str) -> nn.Module:
    """A network that `finished` kept, in eval mode; trained again where the cache is another one."""
    stored = setting.cache / f"{name.replace('/', '-')}.pt"
    if not stored.exists():
        every_job()[name](setting)
    model = torch.load(stored, weights_only=False)
    return model.eval()


def _moment(setting: Setting, seed: int, epoch: int) -> tuple[nn.Sequential, dict[str, Any]]:
    stored = setting.cache / f"dense-s{seed}-e{epoch}.pt"
    if not stored.exists():  # results.json travels, the cache does not
        dense(setting, seed)
    kept = torch.load(stored)
    model = started(seed)
    model.load_state_dict(kept["weights"])
    return model, kept
