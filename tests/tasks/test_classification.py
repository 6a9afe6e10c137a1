"""A classifier's figures are means over images, its bits do not depend on how it got its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

import slim
from slim.data import DigitsData
from slim.tasks import Classification
from tests.tasks.plain import SGD, fit, loader, network, trainer

pytestmark = [
    # Lightning's advice on workers, on the log interval of short epochs, and on loaders met again in a resumed epoch.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*resumed from a checkpoint that ended before.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated.*"),
]


def make(**options: Any) -> Classification:
    return Classification(network(classes=10), optimizer=SGD, **options)


def digits(**options: Any) -> DigitsData:
    """A few real images, in a loader that can start within an epoch."""
    return DigitsData(image_size=8, limit_train=42, batch_size=8, eval_batch_size=8, **options)


def expected(net: nn.Module, batches: Any) -> tuple[float, float]:
    """Mean loss and accuracy over all images."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = net.eval()(x)
    return float(F.cross_entropy(logits.double(), y)), float((logits.argmax(1) == y).double().mean())


def test_figures_are_means_over_images_not_over_batches(tmp_path: Path) -> None:
    module = make(label_smoothing=0.3)
    figures = fit(module, tmp_path)
    assert set(figures) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    loss, accuracy = expected(module.network, loader(seed=1))
    assert figures["val/loss"] == pytest.approx(loss, rel=1e-6) and figures["val/accuracy"] == accuracy
    (tested,) = trainer(tmp_path).test(module, loader(seed=2), verbose=False)
    loss, accuracy = expected(module.network, loader(seed=2))
    assert tested == {"test/loss": pytest.approx(loss, rel=1e-6), "test/accuracy": accuracy}


def test_training_is_the_plain_loop(tmp_path: Path) -> None:
    """Same weights as ten lines of PyTorch, label smoothing and a scheduler per step included."""
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    module = make(label_smoothing=0.1, scheduler=cosine)
    figures = fit(module, tmp_path, max_epochs=2)

    net = network(classes=10).train()
    optimizer = SGD(net.parameters())
    schedule = cosine(optimizer, 2 * len(loader()))
    for _ in range(2):
        losses, right = [], 0
        for x, y in loader():
            logits = net(x)
            loss = F.cross_entropy(logits, y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += [float(loss.detach())] * len(y)
            right += int((logits.argmax(1) == y).sum())
    assert figures["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert figures["train/accuracy"] == right / len(losses)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), module.network.parameters(), strict=True))


class SaveAt(pl.Callback):
    """Saves after batch ``batch`` of epoch ``epoch``; ``None``: in the hook ``hook``."""

    def __init__(self, path: Path, epoch: int, batch: int | None = None) -> None:
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if (trainer.current_epoch, None) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("batch", [0, 1, None])
def test_a_resumed_run_logs_the_figures_of_one_that_never_stopped(tmp_path: Path, batch: int | None) -> None:
    path = tmp_path / "mid.ckpt"
    first, again = make(), make()
    straight = fit(first, tmp_path, digits(), max_epochs=3, callbacks=[SaveAt(path, 1, batch)])
    assert fit(again, tmp_path, digits(), max_epochs=3, ckpt_path=path) == straight
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_epoch_that_was_left_in_the_middle_has_the_figures_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "mid.ckpt"
    straight = fit(make(), tmp_path, digits(), max_epochs=2, callbacks=[SaveAt(path, 1, 1)])
    resumed = fit(make(), tmp_path, digits(), max_epochs=2, ckpt_path=path)
    assert resumed["train/loss"] == straight["train/loss"]
    assert set(torch.load(path)["state_dict"]) == {f"network.{name}" for name in network(classes=10).state_dict()}


def test_strides_are_canonical_whatever_they_were(tmp_path: Path) -> None:
    """Weights that came channels-last from elsewhere train to the same bits."""
    one, other = make(), make()
    other.network.to(memory_format=torch.channels_last)
    fit(one, tmp_path), fit(other, tmp_path)
    assert all(
        torch.equal(a, b) and a.stride() == b.stride()
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_channels_last_is_another_layout_of_the_same_network(tmp_path: Path) -> None:
    one, other = make(), make(channels_last=True)
    plain, laid_out = fit(one, tmp_path), fit(other, tmp_path)
    assert laid_out == pytest.approx(plain, rel=1e-5)
    assert other.network[3].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Graphs are captured and run as they are: no compiler is needed. Gives the first width of what was compiled."""
    real, widths = torch.compile, []

    def compile(module: nn.Module, **options: Any) -> Any:
        widths.append(module[0].out_channels)
        return real(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    yield widths
    torch._dynamo.reset()


def test_a_compiled_network_is_compiled_anew_after_it_was_cut(compiled: list[int]) -> None:
    module = make(compile=True).eval()
    (x, _) = next(iter(loader()))
    assert torch.allclose(module(x), network(classes=10).eval()(x), atol=1e-6)
    graph = slim.trace(module.network, x)
    plan = slim.select(graph, slim.score(graph), ratio=0.5)
    masked = slim.mask(module.network, plan)
    slim.rebuild(module.network, plan, in_place=True)
    assert torch.allclose(module(x), masked(x), atol=1e-6)
    module(x)
    assert len(compiled) == 2 and compiled[0] > compiled[1]
    assert set(module.state_dict()) == {f"network.{name}" for name in network(classes=10).state_dict()}
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_a_scheduler_may_say_its_own_interval(tmp_path: Path) -> None:
    def halve(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
        assert steps == 2 * len(loader())
        return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), "interval": "epoch"}

    module = make(scheduler=halve)
    fit(module, tmp_path, max_epochs=2)
    assert module.optimizers().param_groups[0]["lr"] == 0.1 / 4  # type: ignore[union-attr]


def test_frozen_parameters_stay_out_of_the_optimizer(tmp_path: Path) -> None:
    module = make()
    module.network[0].weight.requires_grad_(False)
    fit(module, tmp_path)
    assert len(module.optimizers().param_groups[0]["params"]) == len(list(module.parameters())) - 1  # type: ignore


def test_two_processes_log_the_figures_of_one(tmp_path: Path) -> None:
    """Their shares and last batches differ in size: still means over all images."""
    module, data = make(), digits(val_fraction=0.5)
    assert len(data.val_dataloader().index) % 2 == 1
    ours = trainer(tmp_path, strategy="ddp_fork", devices=2)
    ours.validate(module, data, verbose=False)
    loss, accuracy = expected(module.network, data.val_dataloader())
    assert float(ours.callback_metrics["val/accuracy"]) == accuracy
    assert float(ours.callback_metrics["val/loss"]) == pytest.approx(loss, rel=1e-6)
