"""The dashboard: every promised tag for any module, each point once however often the fit is resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from slim import SlimError
from slim.lightning import ChannelPruning, GammaDashboard, SparseTraining

from .modules import Plain, convnet, fit

STEPS = 3  # of an epoch


def board(folder: Path, module: Any, *callbacks: Any, every: int = 1, purge: int | None = None, **options: Any) -> Any:
    logger = TensorBoardLogger(folder, name="", version="curves", purge_step=purge, default_hp_metric=False)
    dashboard = GammaDashboard(every_n_steps=every)
    return fit(module, *callbacks, dashboard, logger=logger, log_every_n_steps=1000, **options)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder / "curves"), size_guidance={"scalars": 0, "histograms": 0})
    found.Reload()
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_every_tag_is_there_once_and_follows_the_cut(tmp_path: Path) -> None:
    module = Plain()
    pruning = ChannelPruning(macs=0.5, at=2, recover=False)
    board(tmp_path, module, SparseTraining("l1", lam=0.01), pruning, epochs=3)
    found = points(tmp_path)
    each_epoch = {"macs", "time/images_per_second"}
    each_step = {"lr", "train/loss_step", "sparsity/gammas_below_0.01"}
    law = {"sparsity/zero", "sparsity/target", "sparsity/macs_after_cut", "sparsity/ready"}
    assert each_epoch | each_step | law | {"sparsity/penalty"} <= set(found)
    assert all([step for step, _ in found[tag]] == [3, 6, 9] for tag in each_epoch)
    assert all([step for step, _ in found[tag]] == list(range(1, 10)) for tag in each_step)
    assert [step for step, _ in found["sparsity/penalty"]] == list(range(1, 7)), "the law is off after the cut"
    assert found["sparsity/lam"] == [(step, pytest.approx(0.01)) for step in range(1, 7)]
    assert next(step for step, _ in found["sparsity/zero"]) == 3
    before, after = pruning.cuts[0].before["macs"], pruning.cuts[0].after["macs"]
    assert [value for _, value in found["macs"]] == [before, before, after]
    assert [value for _, value in found["pruning/macs"]] == [after]
    assert found["sparsity/macs_after_cut"][0][1] <= 0.5
    events = read(tmp_path)
    assert set(events.Tags()["histograms"]) == {"gamma/all", "gamma_by_layer/1", "gamma_by_layer/4"}
    assert [event.step for event in events.Histograms("gamma/all")] == [0, 3, 6, 9]


def test_accumulated_batches_make_one_point_of_full_size_at_the_rate_of_the_step(tmp_path: Path) -> None:
    class Scheduled(Plain):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]

    board(tmp_path, Scheduled(), epochs=1, accumulate_grad_batches=2)
    found = points(tmp_path)
    assert [step for step, _ in found["train/loss_step"]] == [1, 2]
    assert found["train/loss_step"][0][1] > 0.8  # three classes begin near log 3, not near half of it
    assert [value for _, value in found["lr"]] == pytest.approx([0.1, 0.05])


class Two(Plain):
    """Two networks, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization, self.other = False, convnet(12)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.manual_backward(self.net(batch[0]).square().mean() + self.other(batch[0]).square().mean())
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr) for part, lr in ((self.net, 0.1), (self.other, 0.2))]


def test_two_networks_have_curves_of_their_own(tmp_path: Path) -> None:
    names, logger = ("net", "other"), TensorBoardLogger(tmp_path, name="", version="curves", default_hp_metric=False)
    cuts = [ChannelPruning(ratio=0.5, at=1, recover=False, network=name) for name in names]
    fit(Two(), *cuts, *(GammaDashboard(every_n_steps=1, network=name) for name in names), logger=logger)
    found = points(tmp_path)
    rates = [[value for _, value in found[f"lr/{name}"]] for name in names]
    assert rates == [pytest.approx([0.1] * 6), pytest.approx([0.2] * 6)]
    for cut, name in zip(cuts, names, strict=True):
        assert [value for _, value in found[f"macs/{name}"]] == [cut.cuts[0].before["macs"], cut.cuts[0].after["macs"]]
        assert [value for _, value in found[f"pruning/macs/{name}"]] == [cut.cuts[0].after["macs"]]
    assert "macs" not in found and "gamma_by_layer/4/other" in read(tmp_path).Tags()["histograms"]


def test_a_resumed_fit_has_every_point_once(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Short(Plain):
        def on_train_batch_end(self, *args: Any) -> None:
            if self.trainer.global_step == 5:
                raise Killed

    law, saver = {"lam": 0.01}, ModelCheckpoint(tmp_path, filename="last")
    with pytest.raises(Killed):
        board(tmp_path, Short(), SparseTraining("l1", **law), saver, epochs=3)
    again = SparseTraining("l1", **law)
    board(tmp_path, Plain(), again, epochs=3, purge=STEPS + 1, ckpt=tmp_path / "last.ckpt")
    for tag, values in points(tmp_path).items():
        steps = Counter(step for step, _ in values)
        assert set(steps.values()) == {1}, tag
        assert max(steps) == 9, tag


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_steps": "x"}, {"every_n_steps": 1.5}, {"histogram_every_n_epochs": "x"}, {"threshold": "x"},
        {"threshold": -1}, {"network": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_value_is_refused_when_the_callback_is_made(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(SlimError, match=f"{name}={value!r}"):
        GammaDashboard(**wrong)
