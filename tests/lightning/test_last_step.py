"""A fit that goes on from a checkpoint of an epoch's last step, or of a validation, does what was due at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint

from slim.lightning import ChannelPruning, SoftPruning, SparseTraining, load

from .modules import Plain, fit, images, same

CALLBACKS: dict[str, Callable[[], list[Any]]] = {
    "law for two epochs": lambda: [SparseTraining("prox", lam=0.2, epochs=2)],
    "exact zeros": lambda: [
        ChannelPruning(zeros=True, every=1, recover=False),
        SparseTraining("target", ratio=0.5, start=0.0, end=0.5),
    ],
    "soft cuts": lambda: [SoftPruning(ratio=0.5)],
    "cuts": lambda: [ChannelPruning(ratio=0.5, at=[1, 3]), SparseTraining("target", ratio=0.5, start=0.0, end=0.9)],
}


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("which", CALLBACKS)
def test_a_checkpoint_of_the_last_step_of_an_epoch(which: str, epoch: int, tmp_path: Path) -> None:
    through, resumed, first, then = Plain(), Plain(), CALLBACKS[which](), CALLBACKS[which]()
    every_step = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    fit(through, *first, every_step, epochs=4)
    fit(resumed, *then, epochs=4, ckpt=str(tmp_path / f"step={3 * epoch}.ckpt"))
    assert same(through, resumed)
    assert getattr(first[0], "history", None) == getattr(then[0], "history", None)


def test_a_checkpoint_of_a_validation_before_the_first_soft_cut(tmp_path: Path) -> None:
    def saved(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(
            folder, filename="{epoch}", save_top_k=-1, monitor="val_loss", save_on_train_epoch_end=False
        )

    through, resumed = Plain(), Plain()
    fit(through, SoftPruning(ratio=0.5), saved(tmp_path), val=images(), epochs=3)
    fit(resumed, SoftPruning(ratio=0.5), val=images(), epochs=3, ckpt=str(tmp_path / "epoch=0.ckpt"))
    assert same(through, resumed)


def test_a_loaded_thin_network_is_cut_further_by_the_dense_ones_budget(tmp_path: Path) -> None:
    fit(Plain(), ChannelPruning(macs=0.7, at=1)).save_checkpoint(tmp_path / "thin.ckpt")
    further = ChannelPruning(macs=0.4, at=1)
    fit(load(Plain, tmp_path / "thin.ckpt"), further)
    (cut,) = further.cuts
    assert cut.selection.achieved["macs"] <= 0.4 < 0.5 < cut.after["macs"] / cut.before["macs"]
