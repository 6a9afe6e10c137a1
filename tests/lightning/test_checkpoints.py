"""Checkpoints of thin networks: every way in gives the thin network, and a resumed fit has the same bits."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import slim
from slim import SlimError
from slim.lightning import ChannelPruning, SparseTraining, load
from slim.lightning.example import quiet

from .averages import averages
from .modules import Plain, convnet, fit, images, same, trainer


class Whole(Plain):
    """All hyperparameters are one argument."""

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        super(Plain, self).__init__()
        self.save_hyperparameters()
        self.net, self.lr = convnet(config["width"]), config["lr"]


class Given(Plain):
    """The one argument is what is saved."""

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        super(Plain, self).__init__()
        self.save_hyperparameters(config)
        self.net, self.lr = convnet(config["width"]), config["lr"]


class Silent(Plain):
    """Saves no hyperparameters."""

    def __init__(self) -> None:
        super(Plain, self).__init__()
        self.net, self.lr = convnet(), 0.1


class Anything(Plain):
    """Takes any argument."""

    def __init__(self, **options: Any) -> None:
        super(Plain, self).__init__()
        self.save_hyperparameters()
        self.net, self.lr = convnet(options["width"]), 0.1


def callbacks(folder: Path, **options: Any) -> list[Any]:
    return [
        SparseTraining("prox", lam=0.5),
        ChannelPruning(ratio=0.5, at=[1, 2], recover={"batches": 2}),
        ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **options),
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(width=12),
        lambda: Whole({"width": 12, "lr": 0.1}),
        lambda: Given({"width": 12, "lr": 0.1}),
        Silent,
        lambda: Anything(width=12),
    ],
    ids=["hyperparameters", "one_argument", "what_it_is_given", "none", "any"],
)
@pytest.mark.parametrize("weights_only", [False, True])
def test_every_way_in_gives_the_thin_network(make: Any, weights_only: bool, tmp_path: Path) -> None:
    module = make()
    run = fit(module, *callbacks(tmp_path, save_weights_only=weights_only), epochs=3, val=images())
    path = tmp_path / "epoch=2.ckpt"
    assert torch.load(path, weights_only=True)["slim"]["networks"].keys() == {"net"}
    with quiet():
        loaded = [type(module).load_from_checkpoint(path), load(type(module), path, map_location="cpu")]
    for other in loaded:
        assert type(other) is type(module)
        assert same(other, module)
        assert other.hparams == module.hparams
    if not weights_only:
        fresh = make()
        tester = trainer(*callbacks(tmp_path))
        with quiet():
            figures = tester.test(fresh, images(), ckpt_path=path, verbose=False)
            assert figures == run.test(module, images(), verbose=False)
            # A checkpoint from before the cut makes the network dense again.
            run.test(module, images(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
        assert same(fresh, loaded[0])
        first = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_killed_fit_goes_on_with_the_same_bits(epoch: int, tmp_path: Path) -> None:
    whole, resumed = Plain(width=12), Plain(width=12)
    fit(whole, *averages(), *callbacks(tmp_path), epochs=4)
    again = callbacks(tmp_path / "again")
    fit(resumed, *averages(), *again, epochs=4, ckpt=tmp_path / f"epoch={epoch}.ckpt")
    assert same(whole, resumed)
    assert [entry["epochs"] for entry in again[1].history] == [1, 2]
    a, b = (torch.load(folder / "epoch=3.ckpt", weights_only=True) for folder in (tmp_path, tmp_path / "again"))
    assert str(a["optimizer_states"]) == str(b["optimizer_states"])
    assert ("averaging_state" in a) == bool(averages())
    assert str(a.get("averaging_state")) == str(b.get("averaging_state"))


def test_a_fit_killed_between_its_checkpoint_and_the_cut_makes_the_cut_up(tmp_path: Path) -> None:
    """Checkpoints of a validation come before the end of the epoch, and so before its cut."""
    options = {"monitor": "val_loss", "save_on_train_epoch_end": False}
    fit(Plain(), *callbacks(tmp_path, **options), epochs=2, val=images())
    assert "slim" not in torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    again = callbacks(tmp_path / "again", **options)
    fit(Plain(), *again, epochs=2, val=images(), ckpt=tmp_path / "epoch=0.ckpt")
    assert [entry["epochs"] for entry in again[1].history] == [1, 2]


def test_cuts_that_are_asked_for_when_their_time_is_over_come_at_once_and_as_one(tmp_path: Path) -> None:
    fit(Plain(), SparseTraining("l1"), ModelCheckpoint(tmp_path, filename="last"), epochs=2)
    pruning, widths = ChannelPruning(ratio=0.5, at=[1, 2], recover=False), Widths()
    module = Plain()
    run = fit(module, SparseTraining("l1"), pruning, widths, epochs=4, ckpt=tmp_path / "last.ckpt")
    assert [entry["epochs"] for entry in pruning.history] == [2], "one cut, as far as both"
    assert pruning.cuts[0].selection.achieved["ratio"] == 0.5
    assert widths.seen[0] == 8, "before the first step"
    with quiet():
        run.test(module, images(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert module.net[1].num_features + module.net[4].num_features == 16, "a dense checkpoint makes it dense again"


def test_a_fit_that_has_nothing_left_to_train_is_cut(tmp_path: Path) -> None:
    """A run that was killed between its last checkpoint and the cut at the end; a cut that is asked for afterwards."""

    def slimmed(at: Any, ckpt: Any = None) -> tuple[Plain, pl.Trainer]:
        module, pruning = Plain(), ChannelPruning(ratio=0.5, at=at, recover={"batches": 2})
        saver = ModelCheckpoint(tmp_path, filename="last")
        run = fit(module, SparseTraining("l1"), pruning, *([] if ckpt else [saver]), epochs=2, ckpt=ckpt)
        assert [entry["epochs"] for entry in pruning.history] == [2]
        return module, run

    whole, _ = slimmed("end")
    for at in ("end", 2):
        resumed, run = slimmed(at, tmp_path / "last.ckpt")
        assert same(whole, resumed)
        run.save_checkpoint(tmp_path / "thin.ckpt")
        assert same(whole, Plain.load_from_checkpoint(tmp_path / "thin.ckpt"))


def test_a_cut_before_the_first_epoch(tmp_path: Path) -> None:
    widths = Widths()
    fit(Plain(), ChannelPruning(ratio=0.5, at=0, recover=False, example=torch.zeros(1, 3, 6, 6)), widths, epochs=1)
    assert widths.seen == [8, 8, 8]


def test_a_cut_before_the_first_epoch_takes_no_batch_from_workers_that_persist() -> None:
    widths = Widths()
    data = DataLoader(images().dataset, 8, num_workers=1, persistent_workers=True)
    fit(Plain(), ChannelPruning(ratio=0.5, at=0), widths, data=data, epochs=1)
    assert widths.seen == [8, 8, 8]


class Widths(pl.Callback):
    """Channels left at every step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.seen.append(module.net[1].num_features + module.net[4].num_features)


def test_a_cut_at_the_end_says_that_no_checkpoint_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, saver = Plain(), ModelCheckpoint(tmp_path, filename="last")
    run = trainer(ChannelPruning(ratio=0.5, recover=False), saver, epochs=1)
    with caplog.at_level(logging.INFO, "pytorch_lightning"), pytest.warns(Warning):  # that nothing validates
        run.fit(module, images())
    assert "Save the thin network with trainer.save_checkpoint(path)" in caplog.text
    dense = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert len(dense["net.1.weight"]) + len(dense["net.4.weight"]) == 16
    run.save_checkpoint(tmp_path / "thin.ckpt")
    assert same(Plain.load_from_checkpoint(tmp_path / "thin.ckpt"), module)


@pytest.mark.parametrize("weights_only", [False, True])
def test_random_gates_are_saved_at_their_deterministic_values(tmp_path: Path, weights_only: bool) -> None:
    sparse = SparseTraining("l0", lam=3.0, gate_lr=0.5)
    looked = []

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 0:
                sampled = module.net[1].weight.clone()
                trainer.save_checkpoint(tmp_path / "first.ckpt", weights_only=weights_only)
                saved = torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"]["net.1.weight"]
                assert torch.equal(module.net[1].weight, sampled)
                with sparse.deterministic_scales():
                    looked.append(torch.equal(saved, module.net[1].weight) and not torch.equal(saved, sampled))

    fit(Plain(), sparse, Save(), epochs=2)
    assert looked == [True]


def test_hooks_that_were_set_on_the_module_are_called(tmp_path: Path) -> None:
    module, called = Plain(), list[str]()
    module.on_save_checkpoint = lambda checkpoint: called.append("save")  # type: ignore[method-assign]
    module.on_load_checkpoint = lambda checkpoint: called.append("load")  # type: ignore[method-assign]
    run = fit(module, ChannelPruning(ratio=0.5, recover=False), epochs=1)
    run.save_checkpoint(tmp_path / "thin.ckpt")
    with quiet():
        run.test(module, images(), ckpt_path=tmp_path / "thin.ckpt", verbose=False)  # prepares the module once more
    assert called == ["save", "load"]


def test_a_plan_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    fit(Plain(width=12), *callbacks(tmp_path), epochs=2)
    with pytest.raises(SlimError, match="match its network"), quiet():
        load(Plain, tmp_path / "epoch=1.ckpt", width=8)


class Pairs(pl.LightningDataModule):
    """The data of these tests, as LightningCLI takes them."""

    def train_dataloader(self) -> Any:
        return images()

    val_dataloader = train_dataloader


CLI = """
trainer:
  max_epochs: 3
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {{class_path: slim.lightning.SparseTraining, init_args: {{penalty: prox}}, dict_kwargs: {{lam: 0.01}}}}
    - {{class_path: slim.lightning.ChannelPruning, init_args: {{ratio: 0.5, at: 2}}}}
    - {{class_path: slim.lightning.GammaDashboard}}
    - {{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {{dirpath: {folder}, filename: last}}}}
"""


@pytest.mark.parametrize(
    "line",
    [
        "{class_path: slim.lightning.SparseTraining, init_args: {penalty: target}, dict_kwargs: {macs: 0.5}}",
        "{class_path: slim.lightning.SparseTraining, init_args: {penalty: l1}}",
        "{class_path: slim.lightning.SparseTraining, init_args: {penalty: {class_path: slim.sparsity.L0}}}",
        "{class_path: slim.lightning.SoftPruning}",
        "{class_path: slim.lightning.SoftPruning, init_args: {macs: 0.5}}",
    ],
)
def test_lightning_cli_makes_every_callback(line: str) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=pl.Callback)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name in older versions
    callback = instantiate(parser.parse_args(["--callback", line])).callback
    assert type(callback).__name__ in line


def test_lightning_cli_trains_cuts_and_loads(tmp_path: Path) -> None:
    from pytorch_lightning.cli import LightningCLI

    (tmp_path / "cli.yaml").write_text(CLI.format(folder=tmp_path))

    def run(*line: str) -> Any:
        options = [line[0], "--config", str(tmp_path / "cli.yaml"), *line[1:]]
        with quiet():
            return LightningCLI(Plain, Pairs, args=options, save_config_callback=None, seed_everything_default=0)

    module = run("fit").model
    assert module.net[1].num_features + module.net[4].num_features == 8
    assert same(Plain.load_from_checkpoint(tmp_path / "last.ckpt"), module)
    assert same(run("validate", "--ckpt_path", str(tmp_path / "last.ckpt")).model, module)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_fit_in_another_precision_goes_on(precision: Any, tmp_path: Path) -> None:
    """A thin network's checkpoint is applied to one that the Trainer has not converted yet; averages stay in floats."""
    whole, resumed, again = Plain(width=12), Plain(width=12), callbacks(tmp_path / "again")
    fit(whole, *averages(), *callbacks(tmp_path), epochs=3, precision=precision)
    fit(resumed, *averages(), *again, epochs=3, precision=precision, ckpt=tmp_path / "epoch=0.ckpt")
    assert [entry["epochs"] for entry in again[1].history] == [1, 2]
    # Lightning loads doubles into the floats that the module has until then.
    assert same(whole, resumed) or precision == "64-true"


def test_target_on_a_loaded_thin_network_has_the_budget_of_the_dense_one(tmp_path: Path) -> None:
    """As the cut that follows: of its own one it would bring more to zero than the cut takes."""
    run = fit(Plain(), ChannelPruning(ratio=0.25, at=1))
    run.save_checkpoint(tmp_path / "thin.ckpt")
    module = load(Plain, tmp_path / "thin.ckpt")
    law = SparseTraining("target", ratio=0.5, start=0.1, end=0.6)
    cut = ChannelPruning(ratio=0.5, at="end")
    fit(module, law, cut)
    scales = [part.weight for part in module.net if isinstance(part, nn.BatchNorm2d)]
    assert sum(map(len, scales)) == 8, "half of the dense network's 16"
    assert all(bool((scale != 0).all()) for scale in scales)


@pytest.mark.parametrize("law", ["l1", "target"])
def test_another_fit_cuts_a_thin_network_further(law: str) -> None:
    """With callbacks of its own, in the same process; a network put in the place of the first is another matter."""
    module = Plain()
    fit(module, ChannelPruning(ratio=0.25, at="end"))
    copied = copy.deepcopy(module)
    for each in (module, copied):
        cut = ChannelPruning(ratio=0.5, at="end")
        fit(each, SparseTraining(law, **({"ratio": 0.5} if law == "target" else {})), cut)
        assert cut.history[-1]["channels"] == 8, "half of the dense network's 16"
    other = slim.prune(convnet(width=12), torch.zeros(1, 3, 6, 6), ratio=0.2)
    module.net = other.model  # type: ignore[assignment]
    with pytest.raises(SlimError, match="thin from the start"):
        fit(module, ChannelPruning(ratio=0.5, at="end"))
    module.net = convnet(width=12)  # type: ignore[assignment]
    cut = ChannelPruning(ratio=0.5, at="end")
    fit(module, cut)
    assert cut.history[-1]["channels"] == 12, "half of its own 24"


@pytest.mark.parametrize("law", ["l1", "target"])
def test_a_fit_after_a_test_of_the_best_checkpoint_goes_on_with_that(law: str, tmp_path: Path) -> None:
    sparse = SparseTraining(law, **({"ratio": 0.3} if law == "target" else {}))
    cut = ChannelPruning(ratio=0.3, at=2)
    best = ModelCheckpoint(tmp_path, monitor="train_loss", mode="max")
    module, run = Plain(), trainer(sparse, cut, best, epochs=3)
    with quiet():
        run.fit(module, images())
        run.test(module, images(), ckpt_path="best", verbose=False)
        assert len(module.net[0].weight) + len(module.net[3].weight) == 16, "the worst epoch is the first, dense"
        run.save_checkpoint(tmp_path / "dense.ckpt")
        again = trainer(sparse, cut, epochs=3)
        again.fit(module, images())
    assert cut.history[-1]["channels"] == 11 == len(module.net[0].weight) + len(module.net[3].weight)


class Momentum(Plain):
    """A second network that follows the first."""

    def __init__(self) -> None:
        super().__init__()
        self.second = convnet().requires_grad_(False)


@pytest.mark.parametrize("callbacks", [[], averages()], ids=["copy", "average"])
def test_copies_and_averages_become_dense_again_with_a_dense_checkpoint(callbacks: Any, tmp_path: Path) -> None:
    """As ``trainer.test(ckpt_path="best")`` asks for where the best epoch is from before the cut."""
    every = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    cut, module = ChannelPruning(ratio=0.5, at=2, network="net", copies=["second"]), Momentum()
    run = fit(module, cut, every, *callbacks, epochs=3)
    for epoch, stays in ((0, 16), (2, 8), (0, 16)):
        with quiet():
            run.test(module, images(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", verbose=False)
        for part in (module.net, module.second):
            assert len(part[0].weight) + len(part[3].weight) == stays  # type: ignore[arg-type]
