"""The dashboard: every promised tag, each point once however often the run is resumed, one row per run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import slim
from slim import sparsity
from slim.runs.checkpoint import SafeFiles, Saver
from slim.callbacks.dashboard import Dashboard, flat, log_cut, log_hparams
from slim.runs.signals import Signals
from slim.module import Classifier
from slim.pipeline.feed import Feed
from slim.pipeline.training import quiet

STEPS = 4  # of an epoch
EPOCHS = 3


def classifier(**options: Any) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    graph = slim.trace(network, torch.zeros(1, 1, 8, 8))
    return Classifier(
        network,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        rate=lambda step: 1.0 if step < 2 else 0.5,
        total_steps=STEPS * EPOCHS,
        graph=graph,
        **options,
    )


def loader() -> Feed:
    torch.manual_seed(1)
    return Feed(DataLoader(TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,))), batch_size=8), (0,))


def fit(folder: Path, module: Classifier, *, purge: int = 0, resume: Path | None = None, **trainer: Any) -> None:
    board = trainer.pop("board", None) or Dashboard(every_n_steps=2)
    save = trainer.pop("save", [])
    with quiet():
        pl.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=TensorBoardLogger(folder, name="", version="sparse", purge_step=purge),
            callbacks=[*trainer.pop("before", []), board, *save],
            plugins=[SafeFiles()],
            enable_checkpointing=bool(save),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **trainer,
        ).fit(module, loader(), loader(), ckpt_path=resume)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    found.Reload()
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_curves_and_histograms_are_there_once(tmp_path: Path) -> None:
    fit(tmp_path, classifier(penalty=sparsity.build("l1", lam=1e-2)))
    found = points(tmp_path / "sparse")
    each_epoch = {
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "sparsity/zero",
        "macs",
        "time/images_per_second",
    }
    each_look = {"lr", "train/loss_step", "sparsity/penalty", "sparsity/gammas_below_0.01"}
    assert each_epoch | each_look <= set(found)
    assert all([step for step, _ in found[tag]] == [4, 8, 12] for tag in each_epoch)
    assert all([step for step, _ in found[tag]] == [2, 4, 6, 8, 10, 12] for tag in each_look)
    events = read(tmp_path / "sparse")
    assert set(events.Tags()["histograms"]) == {"gamma/all", "gamma_by_layer/1"}
    assert [event.step for event in events.Histograms("gamma/all")] == [0, 4, 8, 12]


def test_learning_rate_is_the_one_of_the_step(tmp_path: Path) -> None:
    fit(tmp_path, classifier(), board=Dashboard(every_n_steps=1))
    assert [value for _, value in points(tmp_path / "sparse")["lr"]][:4] == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_accumulated_batches_make_one_point_of_full_size(tmp_path: Path) -> None:
    fit(tmp_path, classifier(), accumulate_grad_batches=2, board=Dashboard(every_n_steps=1))
    found = points(tmp_path / "sparse")
    assert [step for step, _ in found["train/loss_step"]] == [1, 2, 3, 4, 5, 6]
    # The loss of three classes begins near log 3, not near half of it.
    assert found["train/loss_step"][0][1] > 0.8


def test_macs_after_the_cut_when_the_law_knows_them(tmp_path: Path) -> None:
    fit(tmp_path, classifier(penalty=sparsity.build("target", ratio=0.5, criterion="gamma")))
    found = points(tmp_path / "sparse")
    assert 0 < found["sparsity/macs_after_cut"][-1][1] < 1
    assert "sparsity/target" in found


class Dies(pl.Callback):
    """Raises once, at a batch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            raise KeyError("killed")


@pytest.mark.parametrize("at", [2, 7, 9])
def test_a_resumed_run_doubles_no_point(tmp_path: Path, at: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(whole, classifier(penalty=sparsity.build("prox", lam=1e-2)), board=Dashboard(every_n_steps=1))

    def saver() -> Saver:
        return Saver(
            killed / "last.ckpt",
            beside=lambda: {"plan": None, "feed": {}, "seconds": 0.0},
            signals=Signals(),
            every_steps=3,
        )

    def penalized() -> Classifier:
        return classifier(penalty=sparsity.build("prox", lam=1e-2))

    with pytest.raises(KeyError, match="killed"):
        fit(killed, penalized(), before=[Dies(at)], save=[saver()], board=Dashboard(every_n_steps=1))
    saved = killed / "last.ckpt"
    done = torch.load(saved, weights_only=True)["global_step"] if saved.is_file() else None
    assert (done is None) == (at < 3)
    again = Dashboard(every_n_steps=1)
    resume = None if done is None else saved
    fit(killed, penalized(), purge=0 if done is None else done + 1, resume=resume, save=[saver()], board=again)
    a, b = points(killed / "sparse"), points(whole / "sparse")
    timed = "time/images_per_second"  # the machine's, but there once
    assert [step for step, _ in a.pop(timed)] == [step for step, _ in b.pop(timed)]
    assert a == b
    steps = Counter(event.step for event in read(killed / "sparse").Histograms("gamma/all"))
    assert steps == {0: 1, 4: 1, 8: 1, 12: 1}


def test_gammas_are_found_without_a_graph(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    with quiet():
        pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=TensorBoardLogger(tmp_path, name="", version="sparse"),
            callbacks=[Dashboard(every_n_steps=1)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Plain(), loader())
    assert read(tmp_path / "sparse").Tags()["histograms"] == ["gamma/all", "gamma_by_layer/network.1"]


def test_the_cut_is_drawn_and_drawn_again(tmp_path: Path) -> None:
    for _ in range(2):
        log_cut(tmp_path, widths={"a": [8, 3]}, gammas={"a": [0.0, 0.1, 0.5]}, cut=0.1)
    found = read(tmp_path)
    assert set(found.Tags()["images"]) == {"cut/widths", "cut/gammas", "cut/gammas_by_layer"}
    assert all(len(found.Images(tag)) == 1 for tag in found.Tags()["images"])


def test_a_run_is_one_row(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    record = {"rows": {"dense": {"accuracy": 0.9, "macs": 100}, "finetuned": {"accuracy": 0.8, "macs": 25}}}
    for ratio in (0.3, 0.5):
        log_hparams(tmp_path, {"prune": {"ratio": ratio}, "phases": ["sparse"], "resume": None}, record)
    found = read(tmp_path / "hparams")
    assert {tag: found.Scalars(tag)[0].value for tag in found.Tags()["scalars"]} == pytest.approx(
        {"result/accuracy_dense": 0.9, "result/accuracy_finetuned": 0.8, "result/macs_kept": 0.25}
    )
    content = found.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    row = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert (row["prune.ratio"].number_value, row["phases"].string_value) == (0.5, "[sparse]")
    assert "resume" not in row


def test_what_a_sweep_varies_comes_first(tmp_path: Path) -> None:
    """TensorBoard ranks the columns over all runs, unless a run brings a ranking of its own."""
    from tensorboard.plugins.hparams import metadata

    log_hparams(tmp_path, {"seed": 1, "output": "x"}, {})
    assert metadata.EXPERIMENT_TAG not in read(tmp_path / "hparams").PluginTagToContent(metadata.PLUGIN_NAME)
    assert flat({"prune": {"ratio": 0.3}, "output": "x"}) == {"prune.ratio": 0.3}
