"""A cut in the middle of a fit: what it removes, and that everything that knows the network follows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import slim
from slim.channels import plan_of
from slim.lightning import ChannelPruning, Distillation, SparseTraining
from slim.lightning.cut import execute
from slim.lightning.example import quiet

from .averages import averages, needs_average
from .modules import Plain, convnet, fit, images, same, trainer


class Adam(Plain):
    """Two parameter groups, Adam's two states, a scheduler."""

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[:6].parameters()}, {"params": self.net[6:].parameters(), "lr": 0.02}]
        optimizer = torch.optim.Adam(groups, lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def held_once(module: nn.Module, optimizers: Any) -> bool:
    known = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return all(known.count(id(p)) == 1 for p in module.parameters())


@needs_average
def test_a_cut_in_the_middle_takes_everything_along(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = Adam(16), {}
    pruning = ChannelPruning(macs=0.5, at=1, recover=False)
    sparse, average = SparseTraining("l1", lam=0.01), *averages()

    def watched(*args: Any, **kwargs: Any) -> Any:
        optimizer = args[0].trainer.optimizers[0]
        seen["before"] = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
        seen["average"] = {k: v.clone() for k, v in average._average_model.module.net.state_dict().items()}
        seen["step"] = sparse.law.state_dict()["step"]
        cut = execute(*args, **kwargs)
        seen["after"] = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
        seen["thin_average"] = {k: v.clone() for k, v in average._average_model.module.net.state_dict().items()}
        return cut

    monkeypatch.setattr("slim.lightning.pruning.execute", watched)
    run = fit(module, sparse, pruning, average, epochs=3)
    cut = pruning.cuts[0]
    assert cut.difference < 1e-5
    assert cut.after["macs"] <= 0.5 * cut.before["macs"]
    assert slim.trace(module.net, torch.zeros(1, 3, 6, 6)).macs() == cut.after["macs"]
    assert plan_of(module.net) == cut.plan
    assert held_once(module, run.optimizers)
    named = dict(module.net.named_parameters())
    for name, parameter in named.items():
        for key, value in seen["after"][parameter].items():
            before = seen["before"][parameter][key]
            axes = {dim: keep.kept for (param, dim), keep in cut.plan.axes.items() if param == name}
            for dim, kept in axes.items() if before.dim() else ():
                before = before.index_select(dim, torch.as_tensor(kept))
            assert torch.equal(value, before), (name, key)
    thin = slim.rebuild(filled(convnet(16), seen["average"]), cut.plan).state_dict()
    assert all(torch.equal(value, thin[name]) for name, value in seen["thin_average"].items())
    # The law is off after the last cut, and the rest is a fine-tune at the scheduler's rates.
    assert sparse.stopped
    assert sparse.law.state_dict()["step"] == seen["step"] == 3
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
    assert run.global_step == 9


def filled(net: nn.Module, state: Any) -> nn.Module:
    net.load_state_dict(state)
    return net


def test_a_cut_with_recovery_leaves_generators_and_modes_as_they_were() -> None:
    def run(*callbacks: Any) -> torch.Tensor:
        torch.manual_seed(7)
        fit(Plain(), *callbacks, data=images(shuffle=True), epochs=2)
        return torch.rand(1)

    plain = run()
    pruning = ChannelPruning(ratio=0.25, at=1, criterion={"name": "taylor", "batches": 1}, recover={"batches": 2})
    assert torch.equal(run(SparseTraining("l1"), pruning), plain)
    assert [step.name for step in pruning.cuts[0].recovery] == ["absorb", "recalibrate"]


def test_a_network_that_keeps_an_activation_is_cut() -> None:
    class Keeping(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self:
                x = layer(x)
                self.feature = x
            return x

    module = Plain()
    module.net = Keeping(*module.net)
    fit(module, ChannelPruning(ratio=0.5, at=1, recover={"absorb": True}), epochs=2)
    assert module.net[0].out_channels < 8


def test_several_cuts_meet_budgets_of_the_dense_network_and_copies_follow() -> None:
    class Siamese(Plain):
        """A momentum encoder beside the network."""

        def __init__(self) -> None:
            super().__init__(16)
            self.target = convnet(16).requires_grad_(False)

        def on_train_batch_end(self, *args: Any) -> None:
            with torch.no_grad():
                for mine, other in zip(self.target.parameters(), self.net.parameters(), strict=True):
                    mine.lerp_(other, 0.1)

    module = Siamese()
    pruning = ChannelPruning(
        ratio=0.5,
        at={"count": 2, "every": 1},
        min_channels=4,
        network="net",
        copies=["target"],
        recover={"absorb": True},
    )
    sparse = SparseTraining("target", ratio=0.5, network="net")
    fit(module, sparse, pruning, epochs=3)
    assert [entry["epochs"] for entry in pruning.history] == [1, 2]
    assert [entry["channels"] for entry in pruning.history] == [24, 16]
    assert min(module.net[0].out_channels, module.net[3].out_channels) >= 4
    assert [p.shape for p in module.target.parameters()] == [p.shape for p in module.net.parameters()]


def test_a_layer_with_a_ratio_of_its_own_reaches_it_step_by_step() -> None:
    widths: list[list[int]] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            widths.append([module.net[index].num_features for index in (1, 4)])

    own = {"0": {"ratio": 0.75}, "3": {"max_layer_ratio": 0.5}}
    fit(Plain(), ChannelPruning(ratio=0.5, at=[1, 2, 3], recover=False, overrides=own), Watch(), epochs=3)
    assert [first for first, _ in widths] == [6, 4, 2]
    assert widths[-1] == [2, 6]


def test_exact_zeros_go_while_training_goes_on() -> None:
    module = Plain()
    pruning = ChannelPruning(zeros=True, every=1)
    sparse = SparseTraining("target", macs=0.5, start=0.0, end=0.6, select={"min_channels": 2})
    fit(module, sparse, pruning, epochs=6, val=images())
    assert pruning.history
    assert not sparse.stopped
    assert sparse.law.state_dict()["step"] == 18
    assert module.net[1].num_features < 8
    assert all((norm.weight != 0).any() for norm in (module.net[1], module.net[4]))


def test_exact_zeros_go_within_the_limits_of_the_dense_network() -> None:
    class Kill(pl.Callback):
        @torch.no_grad()
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            for norm in (pl_module.net[1], pl_module.net[4]):
                norm.weight[: norm.num_features // 2] = 0

    module = Plain()
    pruning = ChannelPruning(zeros=True, every=1, recover=False, ignore=["3"], max_layer_ratio=0.5)
    fit(module, Kill(), pruning, epochs=4)
    assert (module.net[0].out_channels, module.net[3].out_channels) == (4, 8)


def test_the_end_is_a_moment_too_and_random_gates_are_cut_at_their_deterministic_values() -> None:
    module = Plain()
    pruning, sparse = ChannelPruning(ratio=0.5, recover=False), SparseTraining("l0", lam=1.0, gate_lr=0.5)
    fit(module, sparse, pruning, epochs=3, val=images())
    assert pruning.history[0]["epochs"] == 3
    assert sparse.stopped
    assert pruning.history[0]["channels"] == 8


def test_a_loss_that_somebody_keeps_does_not_hold_on_to_the_old_shapes() -> None:
    class Keeping(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.kept = super().training_step(batch, batch_idx)
            return self.kept

    pruning = ChannelPruning(ratio=0.5, at=1, recover=False)
    fit(Keeping(), pruning, epochs=3)
    assert pruning.history


class Block(nn.Module):
    """A residual block without a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x + self.body(x))


class Residual(Plain):
    """Three blocks; its optimizer remembers every parameter."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(4) for _ in range(3)]
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_whole_branches_go_with_their_optimizer_state_and_come_back_with_a_dense_checkpoint(tmp_path: Path) -> None:
    module = Residual()
    pruning, dense = ChannelPruning(ratio=0.5, at=1, granularity="layer"), tmp_path / "dense.ckpt"
    run = fit(module, SparseTraining("l1"), pruning, KeepFirst(dense), epochs=3)
    assert len(pruning.cuts[0].plan.replaced) > 0
    assert held_once(module, run.optimizers)
    alive = set(module.parameters())
    assert all(parameter in alive for optimizer in run.optimizers for parameter in optimizer.state)
    run.save_checkpoint(tmp_path / "thin.ckpt")
    with quiet():
        assert same(Residual.load_from_checkpoint(tmp_path / "thin.ckpt"), module)
        run.test(module, images(), ckpt_path=dense, verbose=False)
    whole = torch.load(dense, weights_only=True)["state_dict"]
    assert list(module.state_dict()) == list(whole)
    assert all(torch.equal(value, whole[name]) for name, value in module.state_dict().items())


class KeepFirst(pl.Callback):
    """Saves the first epoch's module, before any cut."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self._path)


def test_callbacks_serve_another_module_anew() -> None:
    sparse, pruning = SparseTraining("l1"), ChannelPruning(ratio=0.5, at=1, recover=False)
    for module in (Plain(), Plain()):
        fit(module, sparse, pruning)
        assert [entry["channels"] for entry in pruning.history] == [8]
        assert sparse.law.state_dict()["step"] == 3
        assert module.net[1].num_features + module.net[4].num_features == 8
    fit(module, sparse, pruning)  # and the same one again goes on where it is
    assert len(pruning.history) == 1
    assert sparse.stopped


class Shifted(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shift = convnet(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.shift(t)


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
@pytest.mark.parametrize("call", [lambda net, x, t: net(x, t), lambda net, x, t: net(x, t=t)], ids=["place", "name"])
def test_criteria_with_data_rank_a_network_of_two_inputs(call: Any, criterion: str) -> None:
    class Conditioned(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = Shifted()  # type: ignore[assignment]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, t, y = batch
            return nn.functional.cross_entropy(call(self.net, x, t), y)

    x, y = images().dataset.tensors  # type: ignore[attr-defined]
    t = torch.rand(24, 4)
    module = Conditioned()
    graph = slim.trace(module.net, (x[:1], t[:1]))
    scores = slim.score(graph, criterion, loader=[{"x": x, "t": t, "target": y}])
    pruning = ChannelPruning(ratio=0.5, criterion=criterion)
    removed = pruning.cut(module, batches=[(x, t, y)]).selection.removed
    assert max(scores.values[removed]) <= min(scores.values[~removed & scores.covered])
    again = ChannelPruning(ratio=0.5, criterion=criterion)
    fit(Conditioned(), again, data=DataLoader(TensorDataset(x, t, y), 8))
    assert again.history


def test_a_cut_outside_of_a_fit() -> None:
    module = Plain()
    pruning = ChannelPruning(macs=0.5)
    cut = pruning.cut(module, batches=images(), evaluate=lambda net: 0.5)
    assert [(step.name, step.kept) for step in cut.recovery] == [("absorb", True), ("recalibrate", False)]
    assert plan_of(module.net) == cut.plan
    again = pruning.cut(module, batches=images())
    assert again.plan.is_identity
    dense, twin = Plain(), ChannelPruning(macs=0.5, example=torch.zeros(1, 3, 6, 6), recover=False)
    twin.cut(dense)
    assert same(dense.net, slim.prune(convnet(), torch.zeros(1, 3, 6, 6), macs=0.5).model)


def test_weights_are_refitted_where_that_helps() -> None:
    module = Plain()
    options = {"absorb": False, "least_squares": 2, "batches": 0}
    seen = iter([0.5, 0.6])
    pruning = ChannelPruning(macs=0.5, recover={**options, "evaluate": lambda net: next(seen)})
    dense = copy.deepcopy(module)
    cut = pruning.cut(module, batches=images())
    assert [(step.name, step.before, step.after, step.kept) for step in cut.recovery] == [
        ("least_squares", 0.5, 0.6, True)
    ]
    expected = slim.rebuild(dense.net, cut.plan)
    slim.recovery.least_squares(expected, dense.net, cut.plan, images(), 2)
    assert same(module.net, expected) and not same(module.net, slim.rebuild(dense.net, cut.plan))


def test_compiled_networks_are_cut_and_run_on() -> None:
    torch.compiler.reset()  # other tests compile the same code
    module = Plain()
    module.net = torch.compile(module.net, backend="eager")  # type: ignore[assignment]
    pruning = ChannelPruning(ratio=0.5, at=1)
    with torch._dynamo.config.patch(error_on_recompile=True):  # what was compiled for the dense network is forgotten
        fit(module, pruning, epochs=3)
    assert module(torch.zeros(1, 3, 6, 6)).shape == (1, 3)
    assert pruning.history


def test_a_fit_that_ends_before_its_cut_says_so_and_one_that_fails_leaves_the_module_clean() -> None:
    class Early(Plain):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = True

    pruning = ChannelPruning(macs=0.5, at=2)
    run = trainer(pruning, epochs=4)
    with pytest.warns(Warning) as told:
        run.fit(Early(), images())
    assert any("after 1 epochs, before the cut after 2" in str(each.message) for each in told)
    assert not pruning.cuts

    class Failing(Plain):
        def on_train_epoch_end(self) -> None:
            raise KeyError("mine")

    module = Failing()
    sparse = SparseTraining("l1")
    with pytest.raises(KeyError, match="mine"):
        fit(module, sparse, Distillation(convnet()))
    assert "training_step" not in vars(module)
    assert not module.net._forward_hooks


@pytest.mark.parametrize("at", [9, [8, 9], {"count": 3}, {"count": 3, "every": 2}], ids=str)
def test_a_fast_dev_run_leaves_the_network_as_it_is(at: Any) -> None:
    module, pruning = Plain(), ChannelPruning(ratio=0.5, at=at)
    fit(module, SparseTraining("l1"), pruning, fast_dev_run=True)
    assert plan_of(module.net) is None
    assert not pruning.history
    assert at != {"count": 3} or pruning.last_epoch() is None
    fit(module, ChannelPruning(ratio=0.5), fast_dev_run=True)
    assert plan_of(module.net) is not None, "its end is one, too"
