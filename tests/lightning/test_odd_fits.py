"""Fits that are unlike the usual one: lengths in steps, a second module, averaged parts, steps with side effects."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from slim import SlimError
from slim.lightning import ChannelPruning, Distillation, GammaDashboard, SoftPruning, SparseTraining, load
from slim.lightning.example import quiet

from .modules import Plain, convnet, fit, images, same, trainer


def said(run: pl.Trainer, module: pl.LightningModule, data: Any = None) -> str:
    """The warnings of a fit."""
    with pytest.warns(Warning) as told:
        run.fit(module, images() if data is None else data)
    return "\n".join(str(each.message) for each in told)


def test_the_dashboard_goes_on_after_the_cut(tmp_path: Any) -> None:
    sparse = SparseTraining("target", ratio=0.5)
    pruning = ChannelPruning(ratio=0.5, at=1)
    run = fit(Plain(), sparse, pruning, GammaDashboard(), epochs=3, logger=CSVLogger(tmp_path))
    assert sparse.summary(run)["zero"] == pytest.approx(0.5)


@pytest.mark.parametrize("length", [{"epochs": 8}, {"epochs": None, "max_steps": 24}])
def test_zeros_go_in_a_fit_of_so_many_steps(length: dict[str, Any]) -> None:
    pruning = ChannelPruning(zeros=True, every=4, recover=False)
    fit(Plain(), SparseTraining("target", ratio=0.5, start=0.0, end=0.4), pruning, **length)
    assert [entry["epochs"] for entry in pruning.history] == [4]  # and not after the last epoch


@pytest.mark.parametrize("length", [{"epochs": 4}, {"epochs": None, "max_steps": 12}])
def test_soft_cuts_come_in_a_fit_of_so_many_steps(length: dict[str, Any]) -> None:
    module, silenced = Plain(), []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            silenced.append(int((module.net[1].weight.abs() < 0.1).sum() + (module.net[4].weight.abs() < 0.1).sum()))

    fit(module, SoftPruning(ratio=0.5, leak=0.0), Watch(), **length)
    assert silenced[:3] == [8, 8, 8]


def test_random_gates_meet_a_second_module_and_leave_the_first_alone() -> None:
    sparse = SparseTraining("l0", lam=1.0, gate_lr=0.5)
    pruning = ChannelPruning(ratio=0.5, at=1, recover=False)
    for _ in range(2):
        fit(module := Plain(), sparse, pruning)
        assert module.net[1].weight.numel() < 8 or module.net[4].weight.numel() < 8
    law = SparseTraining("l0", lam=1.0, gate_lr=0.5).law
    fit(first := Plain(), SparseTraining(law))
    before = copy.deepcopy(first.state_dict())
    fit(Plain(), SparseTraining(law))
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())


def test_after_a_fit_that_ends_early_gates_are_deterministic(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = True

    sparse, module = SparseTraining("l0", lam=3.0, gate_lr=0.5), Plain()
    fitted = fit(module, sparse, Stop(), epochs=10)
    kept = module.net[1].weight.clone()
    sparse.law.use_deterministic_scales()  # type: ignore[attr-defined]
    assert torch.equal(kept, module.net[1].weight)
    with quiet():
        fitted.validate(module, images(), verbose=False)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(kept, module.net[1].weight)


class Pair(Plain):
    """A network that is cut and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)


class Decaying(nn.Module):
    """An average as timm's ModelEmaV2 is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(network), 0.9


class Average(pl.Callback):
    """Averages of parts of the module."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.network, self.critic = AveragedModel(pl_module.net), AveragedModel(pl_module.critic)
        self.whole = Decaying(pl_module)


def test_an_average_of_the_network_alone_is_cut_and_one_of_another_part_is_not() -> None:
    average, module = Average(), Pair()
    fit(module, average, ChannelPruning(ratio=0.5, at=1, network="net"))
    shapes = [value.shape for value in module.net.state_dict().values()]
    for copied in (average.network.module, average.whole.module.net):
        assert shapes == [value.shape for value in copied.state_dict().values()]
    assert shapes[0][0] + shapes[7][0] == 8 and average.critic.module.weight.shape == (1, 3)


class OwnAverage(Plain):
    """Keeps its average itself."""

    def __init__(self) -> None:
        super().__init__()
        self.average = AveragedModel(self.net)

    def on_train_batch_end(self, *args: Any) -> None:
        self.average.update_parameters(self.net)


def test_an_average_that_the_module_keeps_is_cut_and_comes_back(tmp_path: Path) -> None:
    module = OwnAverage()
    run = fit(module, SparseTraining("l1"), ChannelPruning(ratio=0.5, at=1))
    shapes = [value.shape for value in module.net.state_dict().values()]
    assert shapes == [value.shape for value in module.average.module.state_dict().values()]
    assert shapes[0][0] + shapes[7][0] == 8
    run.save_checkpoint(tmp_path / "thin.ckpt")
    assert same(module, load(OwnAverage, tmp_path / "thin.ckpt"))


class ByHand:
    """An average as many scripts have it."""

    def __init__(self, network: nn.Module) -> None:
        self.shadow = {name: value.detach().clone() for name, value in network.named_parameters()}


class Shadows(Plain):
    """Copies of its network that no cut follows, and one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.ema, self.slow, self.momentum = ByHand(self.net), copy.deepcopy(self.net), copy.deepcopy(self.net)
        self.parts = list(self.net.parameters())


def test_averages_that_cannot_follow_a_cut_are_named_before_training() -> None:
    run = trainer(ChannelPruning(ratio=0.5, at=1, network="net", copies=["momentum"]))
    assert "Got Shadows.ema, Shadows.slow. What" in said(run, Shadows())


def test_a_law_plans_for_the_cuts_that_come_where_an_average_makes_the_fit_longer() -> None:
    """Lightning's SWA adds an epoch for its statistics, after the cuts were spread over the others."""
    sparse, pruning = SparseTraining("target", ratio=0.5, end=1.0), ChannelPruning(ratio=0.5, at={"count": 2})
    fit(Plain(), sparse, pruning, StochasticWeightAveraging(0.05, swa_epoch_start=2), epochs=5)
    assert [entry["epochs"] for entry in pruning.history] == [2, 3]
    assert sparse.missed_steps() is None and sparse.law.summary()["ready"] == 1


def test_an_optimizer_with_one_vector_of_all_parameters_starts_anew() -> None:
    class Newton(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    module = Newton()
    run = fit(module, ChannelPruning(ratio=0.5, at=1, recover=False), epochs=3)
    assert run.current_epoch == 3 and module.net[1].weight.numel() + module.net[4].weight.numel() == 8


class Detector(nn.Module):
    """Takes a list of images, and keeps what it made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = convnet()

    def forward(self, images: list[Tensor]) -> Tensor:
        self.features = self.layers[:3](torch.stack(images))
        return self.layers[3:](self.features)


@pytest.mark.parametrize("criterion", ["gamma", "taylor"])
def test_a_network_that_takes_a_list_is_ranked_cut_and_recovered(criterion: str) -> None:
    class Detecting(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(list(batch[0])), batch[1])

    module, pruning = Detecting(), ChannelPruning(ratio=0.5, at=1, criterion=criterion)
    module.net = Detector()  # type: ignore[assignment]
    fit(module, pruning)
    assert [step.kept for step in pruning.cuts[0].recovery] == [True, True]
    assert pruning.cuts[0].after["channels"] == 8


class Noisy(nn.Module):
    def __init__(self, where: int) -> None:
        super().__init__()
        self.layers, self.where = convnet(), where

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[: self.where](x)
        return self.layers[self.where :](x + torch.randn_like(x))


@pytest.mark.parametrize("where", [9, 3])
def test_a_network_that_draws_random_numbers_is_cut(where: int) -> None:
    module, pruning = Plain(), ChannelPruning(ratio=0.5, at=1, recover=False)
    module.net = Noisy(where)  # type: ignore[assignment]
    if where == 9:  # the same noise for both networks
        fit(module, pruning)
        assert pruning.cuts[0].difference < 1e-5
    else:  # in a width that was cut
        assert "could not be checked" in said(trainer(pruning), module)
        assert pruning.cuts[0].difference != pruning.cuts[0].difference


class Manual(Plain):
    """A step of the optimizer in every fourth step of training."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]) / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


class Sharpness(torch.optim.Optimizer):
    """SAM as many scripts have it: an optimizer around another, whose step is not called."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["before"] = parameter.clone()
            parameter += 0.05 * parameter.grad
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["before"])
        self.base_optimizer.step()
        self.zero_grad()


class Sharp(Plain):
    """Two backward passes per step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        for step in (optimizer.optimizer.climb, optimizer.optimizer.descend):
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            step()

    def configure_optimizers(self) -> Any:
        return Sharpness(self.parameters(), self.lr)


def test_an_optimizer_around_another_is_cut_and_its_law_acts_in_the_inner_one() -> None:
    sparse, module = SparseTraining("target", ratio=0.5), Sharp()
    run = fit(module, sparse, ChannelPruning(ratio=0.5, at=2, recover=False), epochs=3)
    assert sparse.law.state_dict()["step"] == 6
    outer: Any = run.optimizers[0]
    for state in (outer.state, outer.base_optimizer.state):
        assert {value.shape == p.shape for p, entry in state.items() for value in entry.values()} == {True}


class Aside(Plain):
    """Steps an optimizer that the Trainer does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.own = torch.optim.SGD(self.net.parameters(), 0.1)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.own.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        self.own.step()


def test_a_law_that_made_no_step_says_so_after_the_first_epoch() -> None:
    assert "Call the step() of its optimizer" in said(trainer(SparseTraining("l1"), epochs=1), Aside())


def test_a_law_that_planned_with_too_many_steps_says_so() -> None:
    pruning = ChannelPruning(ratio=0.5, at=2)
    run = trainer(SparseTraining("target", ratio=0.5), pruning, epochs=3)
    told = said(run, Manual(), images(64, 4))
    assert (
        "planned with 32 optimizer steps and the cut comes after 8" in told
        and "Under manual optimization set steps=8" in told
    )
    right = SparseTraining("target", ratio=0.5, steps=8)
    fit(Manual(), right, ChannelPruning(ratio=0.5, at=2), data=images(64, 4), epochs=3)
    assert right.missed_steps() is None and right.law.summary()["ready"] == 1


@pytest.mark.parametrize(("every", "epochs", "steps"), [(4, 3, 12), (1, 3, 60), (1, 1, 20)])
def test_steps_that_are_not_as_planned_are_told_after_the_first_epoch(every: int, epochs: int, steps: int) -> None:
    class Other(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            super().training_step(batch, batch_idx)
            if every == 1:
                self.optimizers().step()

    run = trainer(SparseTraining("l1", epochs=epochs), epochs=3)
    told = said(run, Other(), images(64, 4))
    assert f"Set steps={steps} (" in told


def test_ranking_and_recovery_leave_no_trace_in_the_module() -> None:
    class Counting(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.seen, self.calls = MeanMetric(), [0], 0
            self.register_buffer("momentum", torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.mean.update(batch[0].mean())
            self.seen.append(len(self.seen))
            self.calls += 1
            self.momentum += 1
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            counts.append((int(self.mean._update_count), len(self.seen) - 1, self.calls, int(self.momentum)))

    counts: list[Any] = []
    fit(Counting(), SparseTraining(), ChannelPruning(ratio=0.5, at=1, criterion="taylor"), epochs=2)
    assert counts == [(3, 3, 3, 3), (6, 6, 6, 6)]


class Alternating(Pair):
    """A critic that is trained whole, schedule and all, before the network is called."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization, self.critic = False, nn.Linear(108, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        losses = (lambda: self.critic(batch[0].flatten(1)).mean(), lambda: self.net(batch[0]).square().mean())
        for loss, optimizer, scheduler in zip(losses, self.optimizers(), self.lr_schedulers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()
            scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (self.critic, self.net)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(each, 1) for each in optimizers]


def test_looking_for_the_networks_inputs_steps_no_schedule_and_clears_no_gradient() -> None:
    module, kept = Alternating(), list[bool]()

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            kept.append(batch_idx == 0 or pl_module.critic.weight.grad is not None)

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            kept.append(pl_module.critic.weight.grad is not None)

    run = fit(module, ChannelPruning(ratio=0.5, at=1, network="net"), SparseTraining(network="net"), Watch())
    assert [config.scheduler.last_epoch for config in run.lr_scheduler_configs] == [6, 6]
    assert all(kept)


class Locked:
    """A schedule that holds what cannot be copied, as one with a logger does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, epoch: int) -> float:
        return 1.0


def test_a_scheduler_that_cannot_be_copied_costs_the_forecast_alone() -> None:
    class Scheduled(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, Locked())]

    assert "LambdaLR, which cannot be copied" in said(trainer(SparseTraining("l1")), Scheduled())
    with pytest.raises(SlimError, match="LambdaLR, which cannot be copied"):
        fit(Scheduled(), SparseTraining("l1", shrink=1.0))


def test_a_training_step_of_the_instance_is_put_back() -> None:
    module = Plain()
    module.training_step = own = lambda batch, batch_idx: Plain.training_step(module, batch, batch_idx)  # type: ignore[method-assign]
    fit(module, Distillation(convnet(4)))
    assert vars(module)["training_step"] is own
