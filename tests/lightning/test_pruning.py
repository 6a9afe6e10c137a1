"""A cut in the middle of a fit: what it removes, and that everything that knows the network follows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import slim
from slim import SlimError
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


def test_what_cannot_be_cut_is_refused_before_anything_is_trained() -> None:
    class Named(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step((batch["image"], batch["label"]), batch_idx)

    def named(batch: Any) -> Any:
        return {"image": torch.stack([x for x, _ in batch]), "label": torch.stack([y for _, y in batch])}

    x, y = images().dataset.tensors  # type: ignore[attr-defined]
    pairs = list(zip(x, y, strict=True))
    for pruning, data, words in (
        (ChannelPruning(macs=0.01, at=1), images(), "within reach"),
        (ChannelPruning(ratio=0.5, at=1, ignore=["no.such"]), images(), "no.such"),
        (ChannelPruning(ratio=0.5, at=1, criterion="taylor"), DataLoader([(a, (b, 1)) for a, b in pairs], 8), "loss="),
    ):
        module = Plain()
        run = trainer(pruning)
        with pytest.raises(SlimError, match=words), quiet():
            run.fit(module, data)
        assert run.global_step == 0
    taylor = ChannelPruning(ratio=0.5, at=1, criterion="taylor", recover=False)
    fit(Named(), taylor, data=DataLoader(pairs, 8, collate_fn=named))
    assert taylor.history, "the labels of a dict are what the network was not given"


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
    run = fit(module, SparseTraining("l1"), pruning, fast_dev_run=True)
    assert plan_of(module.net) is None
    assert not pruning.history
    assert at != {"count": 3} or pruning.last_epoch(run) is None
    fit(module, ChannelPruning(ratio=0.5), fast_dev_run=True)
    assert plan_of(module.net) is not None, "its end is one, too"


def test_misuse_is_one_line() -> None:
    class Bare(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))

    class Frozen(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net[1].requires_grad_(False)
            self.net[4].requires_grad_(False)

    sharded = trainer()
    sharded.strategy.__class__ = type("FSDPStrategy", (type(sharded.strategy),), {})
    for misuse, words in (
        (lambda: ChannelPruning(), "none"),
        (lambda: ChannelPruning(macs=0.5, ratio=0.5), "ratio=0.5, macs=0.5"),
        (lambda: ChannelPruning(macs=0.5, every=1), "every=1"),
        (lambda: ChannelPruning(zeros=True), "every=None"),
        (lambda: ChannelPruning(macs=0.5, min_chanels=2), "min_channels"),
        (lambda: ChannelPruning(macs=0.5, recover={"batch": 2}), "batches"),
        (lambda: ChannelPruning(macs=0.5, recover=50), "batches"),  # type: ignore[arg-type]
        (lambda: fit(Plain(), ChannelPruning(macs=0.5, at=3)), "max_epochs=2"),
        (lambda: fit(Plain(), ChannelPruning(macs=0.5, at=[2, 1])), "ascending"),
        (lambda: fit(Plain(), ChannelPruning(macs=0.5, at={"count": 3}), epochs=3), "max_epochs to at least 4"),
        (lambda: fit(Bare(), ChannelPruning(macs=0.5)), "convolutions"),
        (lambda: fit(Frozen(), SparseTraining("l1")), "frozen"),
        (lambda: fit(Plain(), SparseTraining("l0"), ChannelPruning(macs=0.5, at=[1, 2])), "random gates"),
        (
            lambda: fit(Plain(), SparseTraining("l1", trace={"residual": "keep"}), ChannelPruning(macs=0.5, trace={})),
            "trace",
        ),
        (lambda: ChannelPruning(macs=0.5).setup(sharded, Plain(), "fit"), "FSDP"),
    ):
        with pytest.raises(SlimError, match=words) as caught:
            misuse()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"recover": {"batches": wrong}}, "recover.batches=") for wrong in ("x", 1.5, -1, True)),
        *(({"recover": {"least_squares": wrong}}, "recover.least_squares=") for wrong in ("x", 1.5, -1, True)),
        ({"recover": {"evaluate": 3}}, "recover.evaluate=3"),
        ({"recover": {"absorb": "x"}}, "recover.absorb="),
        ({"copies": "teacher"}, r"Set copies=\['teacher'\]"),
        *(({"copies": wrong}, "list of networks") for wrong in (5, None, nn.Sequential())),
        ({"copies": [5]}, "network=5"),
        ({"network": 5}, "network=5"),
        *(({"ratio": wrong}, "ratio must be") for wrong in ("half", [0.5], True)),
        *(({"ratio": None, kind: "x"}, f"{kind}='x'") for kind in ("macs", "params", "memory", "latency")),
        ({"at": {"start": "x"}}, "start='x'"),
        ({"at": {"every": "x"}}, "at.every='x'"),
        ({"at": "ende"}, "at='ende'"),
        ({"criterion": {"nam": "gamma"}}, "dict of name"),
        ({"criterion": 5}, "criterion=5"),
        ({"criterion": {"name": "taylor", "batches": -1}}, "criterion.batches=-1"),
        ({"trace": {"foo": 1}}, "trace.foo=1"),
        ({"trace": "keep"}, "trace='keep'"),
        ({"overrides": ["0"]}, "overrides"),
        ({"inexact": "x"}, "inexact='x'"),
        ({"ratio": None, "zeros": True, "every": True}, "every=True"),
        ({"ratio": None, "zeros": True, "every": 1, "min_channels": "x"}, "min_channels='x'"),
        ({"ratio": None, "zeros": "x", "every": 1}, "zeros='x'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_when_the_callback_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SlimError, match=words):
        ChannelPruning(**{"ratio": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"copies": ["techer"], "at": 2}, "techer"),
        ({"criterion": lambda graph: 5}, "pairs of groups and values. Got int"),
        ({"criterion": lambda graph: [1, 2]}, "pairs of groups and values. Got int"),
        ({"network": lambda module: module.nett}, "AttributeError"),
        ({"network": lambda module: None}, "NoneType"),
    ],
)
def test_what_only_a_fit_can_know_is_refused_before_its_first_step(options: dict[str, Any], words: str) -> None:
    run = trainer(ChannelPruning(ratio=0.5, **options))
    with pytest.raises(SlimError, match=words), quiet():
        run.fit(Plain(), images())
    assert run.global_step == 0


def test_numbers_of_numpy_are_numbers_and_a_figure_must_be_one() -> None:
    whole = {"absorb": True, "batches": np.int64(1), "least_squares": np.int64(1)}
    pruning = ChannelPruning(ratio=np.float32(0.5), min_channels=np.int64(2), recover=whole)
    fit(Plain(), pruning, SparseTraining("l1", shrink=np.float32(0.5), epochs=np.int64(1)))
    assert pruning.history
    with pytest.raises(SlimError, match="a figure, higher is better"):
        ChannelPruning(ratio=0.5, recover={"evaluate": lambda net: None}).cut(Plain(), batches=images())
