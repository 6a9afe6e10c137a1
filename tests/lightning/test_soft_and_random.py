"""Soft cuts, and generators that go on where they were."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from slim import SlimError, criteria
from slim.lightning import ChannelPruning, RandomState, SoftPruning, SparseTraining

from .modules import Plain, convnet, fit, images, same


class Quiet(pl.Callback):
    """Counts scales that are next to nothing, after each epoch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        gammas = torch.cat([module.net[1].weight, module.net[4].weight]).detach().abs()
        self.counts.append(int((gammas < 1e-2).sum()))


def test_a_soft_cut_silences_what_the_cut_would_take_until_it_comes() -> None:
    quiet = Quiet()
    module = Plain(lr=0.001)
    pruning = ChannelPruning(ratio=0.5, at=3, recover=False)
    fit(module, SoftPruning(every=1), pruning, quiet, epochs=5)
    # 8 of 16 after the first two epochs; the cut after the third takes them.
    assert quiet.counts == [8, 8, 0, 0, 0]
    assert pruning.cuts[0].selection.achieved["ratio"] == 0.5
    ranked: list[int] = []
    counting = ChannelPruning(ratio=0.5, at=2, recover=False, criterion=partial(_by_gamma, ranked))
    fit(Plain(), SoftPruning(every=1), counting, epochs=5)
    assert len(ranked) == 3, "ranked at the first batch, for the soft cut and for the cut, and not after it"
    alone = Quiet()
    fit(Plain(lr=0.001), SoftPruning(every=2, ratio=0.25), alone, epochs=4)
    assert [count == 4 for count in alone.counts] == [False, True, True, True]
    with pytest.raises(SlimError, match="needs a budget"):
        fit(Plain(), SoftPruning())
    with pytest.raises(SlimError, match="every=0"):
        SoftPruning(every=0)
    with pytest.raises(SlimError, match="random gates"):
        fit(Plain(), SparseTraining("l0"), SoftPruning(ratio=0.5))


class Two(Plain):
    """Two networks, one after the other."""

    def __init__(self) -> None:
        super().__init__(lr=0.001)
        self.other = convnet()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + self.other(batch[0]).square().mean()


def test_each_of_two_networks_has_a_soft_cut_of_its_own(tmp_path: Path) -> None:
    module = Two()
    soft = [SoftPruning(ratio=0.25, network="net"), SoftPruning(ratio=0.5, network="other")]
    fit(module, *soft, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    scales = [[saved["state_dict"][f"{name}.{layer}.weight"] for layer in (1, 4)] for name in ("net", "other")]
    assert [int((torch.cat(each) < 1e-2).sum()) for each in scales] == [4, 8]
    assert all(saved["callbacks"][each.state_key]["softened"] == 1 for each in soft)


@pytest.mark.parametrize(
    "wrong", [*({"leak": leak} for leak in ("x", 2, -1, True)), {"every": True}, {"trace": {"foo": 1}}], ids=str
)
def test_a_wrong_value_is_refused_when_the_callback_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(SlimError, match=f"Got {next(iter(wrong))}"):
        SoftPruning(**{"ratio": 0.5, **wrong})


def _by_gamma(ranked: list[int], graph: Any) -> Any:
    ranked.append(1)
    return criteria.find("gamma").rank(graph)


class Dropping(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*convnet()[:7], nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("law", ["l1", "l0", "target"])
def test_a_fit_that_shuffles_and_drops_out_goes_on_with_the_same_bits(law: str, tmp_path: Path) -> None:
    chosen = {"ratio": 0.4} if law == "target" else {"lam": 0.01}

    def run(folder: Path, **options: Any) -> Plain:
        torch.manual_seed(3)
        module = Dropping()
        callbacks = [SparseTraining(law, **chosen), ChannelPruning(macs=0.6, at=2), RandomState()]
        saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        fit(module, *callbacks, saver, data=images(shuffle=True), epochs=4, **options)
        return module

    whole = run(tmp_path)
    for epoch in (0, 2):
        torch.manual_seed(100 + epoch)
        assert same(run(tmp_path / "again", ckpt=tmp_path / f"epoch={epoch}.ckpt"), whole)
