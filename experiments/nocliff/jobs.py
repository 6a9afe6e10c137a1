"""The jobs: one network trained in one way from one seed, each in the same number of epochs on the same images."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import slim
from experiments.nocliff import network
from experiments.nocliff.data import Batches, Images
from experiments.nocliff.loop import accuracy, train
from experiments.nocliff.rival import BNScale
from experiments.store import Store
from slim.channels import count_macs, count_params
from slim.recovery import Distillation, least_squares, recalibrate
from slim.sparsity import build

RESULTS = Store(Path(__file__).parent / "results.json")
EPOCHS = 12
SPARSE_EPOCHS = 8  # of the twelve, for laws that end with a cut; the rest is the fine-tune phase
BRANCH = 3  # of the twelve, before anything is removed
FITTED = 5  # batches of 250 images that least squares sees
EXAMPLE = torch.zeros(1, 3, 32, 32)
BUILDERS: dict[str, Callable[[], nn.Module]] = {"vgg": network.vgg, "resnet20": network.resnet20}
L1 = {"lam": 1e-3}
# The same pressure under every law: prox has no momentum behind it, polarization pushes the weak with t + 1 = 2.2.
LAWS: dict[str, dict[str, Any]] = {
    "l1": L1,
    "prox": {"lam": 1e-2},
    "polarization": {"lam": 5e-4},
    "group": L1,
    "l0": {"lam": 1e-3},
}
# When channels go, chosen on validation images (choose.py): late for a budget of MACs and under a teacher from epoch 0.
EARLY, LATE = {"start": 0.28, "end": 0.7}, {"start": 0.5, "end": 0.8}
TAUGHT = {"temperature": 4.0, "weight": 0.5}  # chosen in the same way


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where images come from and trained networks go."""

    train: Images
    test: Images
    cache: Path
    epochs: int = EPOCHS

    def calibration(self) -> Batches:
        """Batches for BatchNorm statistics: training images, in the order of a fixed seed."""
        return Batches(self.train, 250, seed=0)


def dense(setting: Setting, name: str, seed: int, *, taught: bool = False) -> dict[str, Any]:
    """The network as it is; ``taught``: once more from fresh weights, with the first as a teacher."""
    model = started(name, seed)
    distillation = Distillation(trained(setting, name, seed), **TAUGHT) if taught else None
    train(model, setting.train, epochs=setting.epochs, seed=seed, distillation=distillation)
    keep(setting, f"{name}-dense{'-taught' * taught}-s{seed}", model)
    return {"accuracy": accuracy(model, setting.test)} | sizes(model, name)


def target(
    setting: Setting, name: str, seed: int, *, teacher_from: int | None = None, **budget: float
) -> dict[str, Any]:
    """All epochs under `target`, no fine-tune; channels at zero leave the network after each epoch.

    ``teacher_from``: with the dense network of this seed as a teacher, from epoch 0 (as in a run with
    ``sparse.distill``) or ``BRANCH`` on.
    """
    model, kept = (started(name, seed), None) if teacher_from == 0 else branch(setting, name, seed)
    distillation = None if teacher_from is None else Distillation(trained(setting, name, seed), **TAUGHT)
    (kind,) = budget
    penalty = build("target", **budget, **(LATE if kind == "macs" or teacher_from == 0 else EARLY))
    result = under_target(setting, name, seed, model, penalty, kept=kept, distillation=distillation)
    how = {None: "", BRANCH: "-taught", 0: "-taught-throughout"}[teacher_from]
    keep(setting, f"{name}-target-{kind}{budget[kind]}{how}-s{seed}", model)
    return result


def branch(setting: Setting, name: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Network and optimizer after ``BRANCH`` epochs, trained once: until then the law only looks on."""
    stored = setting.cache / f"{name}-branch-s{seed}.pt"
    model = started(name, seed)
    if not stored.exists():
        kept = train(model, setting.train, epochs=setting.epochs, seed=seed, until=BRANCH)
        torch.save({"weights": model.state_dict(), "kept": kept}, stored)
    saved = torch.load(stored)
    model.load_state_dict(saved["weights"])
    return model, saved["kept"]


def trained(setting: Setting, name: str, seed: int) -> nn.Module:
    """The network that `dense` stored, in eval mode."""
    model = started(name, seed)
    model.load_state_dict(torch.load(setting.cache / f"{name}-dense-s{seed}.pt")["weights"])
    return model.eval()


def under_target(setting: Setting, name: str, seed: int, model: nn.Module, penalty: Any, **more: Any) -> dict[str, Any]:
    """Train ``model`` in place; ``more`` goes to `train`."""
    graph = slim.trace(model, EXAMPLE)
    history: list[float] = []

    def after_epoch(done: int, optimizer: torch.optim.Optimizer) -> None:
        nonlocal graph
        gone = penalty.removed()
        if gone.any():
            slim.rebuild(model, graph.plan(gone), in_place=True, optimizer=optimizer)
            graph = slim.trace(model, EXAMPLE)
            penalty.resize(model, graph)
        history.append(round(sizes(model, name)["macs"], 4))

    train(model, setting.train, epochs=setting.epochs, seed=seed, penalty=penalty, graph=graph, after_epoch=after_epoch,
          **more)  # fmt: skip
    result = {"accuracy": accuracy(model, setting.test), "macs_by_epoch": history}
    recalibrate(model, setting.calibration(), 20)
    result["recalibrated"] = accuracy(model, setting.test)
    return result | sizes(model, name)


def whole(setting: Setting, name: str, seed: int, *, law: str) -> dict[str, Any]:
    """All epochs under a law that knows no budget, and no cut: the network whose curve is drawn."""
    model = started(name, seed)
    penalty = build(law, **LAWS[law])
    train(model, setting.train, epochs=setting.epochs, seed=seed, penalty=penalty, graph=slim.trace(model, EXAMPLE))
    keep(setting, f"{name}-{law}-whole-s{seed}", model)
    return {"accuracy": accuracy(model, setting.test), "zero": penalty.summary()["zero"]} | sizes(model, name)


def cut(setting: Setting, name: str, seed: int, *, law: str, macs: float) -> dict[str, Any]:
    """Eight epochs, one late cut, four epochs of fine-tuning, in one learning-rate cycle.

    ``l1``: under the penalty, ranked by gamma. ``uniform``: without, the same share of every layer, by gamma within it.
    ``torch_pruning``: BNScalePruner of Torch-Pruning, its own regularization and its own cut.
    """
    model = started(name, seed)
    graph = slim.trace(model, EXAMPLE)
    rival = BNScale(model, EXAMPLE, L1["lam"]) if law == "torch_pruning" else None
    penalty: Any = build("l1", **L1) if law == "l1" else rival
    record: dict[str, Any] = {}

    def after_epoch(done: int, optimizer: torch.optim.Optimizer) -> None:
        if done != round(setting.epochs * SPARSE_EPOCHS / EPOCHS):
            return
        keep(setting, f"{name}-{law}-sparse-s{seed}", model)
        record["sparse"] = accuracy(model, setting.test)
        if rival is not None:
            rival.cut(macs, optimizer)
        else:
            strategy = "layer" if law == "uniform" else "global"
            plan = slim.select(graph, slim.score(graph, "gamma"), macs=macs, strategy=strategy)
            slim.rebuild(model, plan, in_place=True, optimizer=optimizer)
        record["rebuilt"] = accuracy(model, setting.test)
        recalibrate(model, setting.calibration(), 20)
        record["recalibrated"] = accuracy(model, setting.test)

    sparse_epochs = round(setting.epochs * SPARSE_EPOCHS / EPOCHS)
    train(model, setting.train, epochs=setting.epochs, seed=seed, penalty=penalty, graph=graph,
          sparse_epochs=sparse_epochs, after_epoch=after_epoch)  # fmt: skip
    keep(setting, f"{name}-{law}-macs{macs}-s{seed}", model)
    return record | {"accuracy": accuracy(model, setting.test)} | sizes(model, name)


def repair(setting: Setting, name: str, seed: int, *, macs: float) -> dict[str, Any]:
    """What the cut of `uniform` costs without any training after it, and what recovery gives back, in fp32.

    ``sparse``: before the cut. ``rebuilt``: nothing is done. ``least_squares``: the weights of the next layers are
    fitted to what they gave before the cut. ``<...>_recalibrated``: with new BatchNorm statistics, which help the
    network before the cut, too: in the middle of training they lag behind its weights.
    """
    stored, model = setting.cache / f"{name}-uniform-sparse-fp32-s{seed}.pt", started(name, seed)
    if not stored.exists():
        until = round(setting.epochs * SPARSE_EPOCHS / EPOCHS)
        train(model, setting.train, epochs=setting.epochs, seed=seed, until=until, precision="fp32")
        torch.save(model.state_dict(), stored)
    model.load_state_dict(torch.load(stored))
    graph = slim.trace(model, EXAMPLE)
    plan = slim.select(graph, slim.score(graph, "gamma"), macs=macs, strategy="layer")
    bare, fitted = slim.rebuild(model, plan), slim.rebuild(model, plan)
    least_squares(fitted, model, plan, setting.calibration(), FITTED)
    found = {"sparse": model, "rebuilt": bare, "least_squares": fitted}
    for key, each in list(found.items()):
        found[f"{key}_recalibrated"] = copy.deepcopy(each)
        recalibrate(found[f"{key}_recalibrated"], setting.calibration(), 20)
    figures = {key: accuracy(each, setting.test, "fp32") for key, each in found.items()}
    return figures | sizes(bare, name)


def scratch(setting: Setting, name: str, seed: int, *, macs: float) -> dict[str, Any]:
    """The shape that `target` found for this budget and seed, fresh weights, all epochs."""
    plan = torch.load(setting.cache / f"{name}-target-macs{macs}-s{seed}.pt")["plan"]
    model = slim.rebuild(started(name, seed), slim.Plan.from_json(plan))
    network.start(model)  # type: ignore[arg-type]
    train(model, setting.train, epochs=setting.epochs, seed=seed)
    return {"accuracy": accuracy(model, setting.test)} | sizes(model, name)


def started(name: str, seed: int) -> nn.Module:
    """A fresh network; the weights follow from the seed."""
    torch.manual_seed(seed)
    return BUILDERS[name]()


def sizes(model: nn.Module, name: str) -> dict[str, Any]:
    """Widths of the convolutions, share of the channels removed, MACs and parameters against the dense network."""
    full = BUILDERS[name]()
    scales, before = (sum(m.num_features for m in n.modules() if isinstance(m, nn.BatchNorm2d)) for n in (model, full))
    return {
        "removed": 1 - scales / before,
        "macs": count_macs(model, EXAMPLE) / count_macs(full, EXAMPLE),
        "params": count_params(model) / count_params(full),
        "widths": [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)],
    }


def keep(setting: Setting, name: str, model: nn.Module) -> None:
    """Weights and plan, for the curves and for `scratch`."""
    plan = slim.channels.plan_of(model)
    torch.save({"weights": model.state_dict(), "plan": plan.to_json() if plan else None}, setting.cache / f"{name}.pt")
