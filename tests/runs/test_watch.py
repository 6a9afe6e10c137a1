"""Whoever watches a run sees its curve, and may end it; nothing is lost then."""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slim.command.compose import compose, register
from slim.runs.config import read
from slim.runs.phases import run
from slim.runs.prepare import prepare
from slim.runs.watch import Pruned, Watched, epochs_before
from tests.runs.tiny import TINY

TWICE = ["phases=[baseline,sparse,prune,finetune]", "schedule=iterative", "schedule.count=2", "baseline.epochs=1"]
LINE = ["+experiment=vgg_slim", *(item for item in TINY if not item.startswith("baseline.")), *TWICE]


def test_a_run_shows_its_curve_and_goes_on_after_it_was_ended(tmp_path: Path) -> None:
    """Every epoch of every training phase of both passes, under one count; ended in a fine-tune, it goes on there."""
    register("id")
    parts = prepare(compose(LINE, argparse.Namespace(config_dir=None, config_name=None))[0])
    seen: dict[int, float] = {}
    ended: list[int] = []

    def watch(epoch: int, value: float) -> None:
        assert seen.setdefault(epoch, value) == value, "a resumed run repeats an epoch, with the same value"
        if epoch == 4 and not ended:
            ended.append(epoch)
            raise Pruned("Hopeless.")

    with pytest.raises(Pruned, match="Hopeless"):
        run(replace(parts, watch=watch), tmp_path / "run", LINE)
    assert list(seen) == [0, 1, 2, 3, 4]
    assert "Hopeless" in (tmp_path / "run" / "error.txt").read_text()
    report = run(replace(parts, watch=watch), tmp_path / "run", LINE)
    phases = ["baseline", "sparse", "finetune", "sparse-2", "finetune-2"]
    assert list(report["history"]) == phases
    curves = [report["history"][phase]["val_accuracy"] for phase in phases]
    assert seen == dict(enumerate(chain.from_iterable(curves)))


def test_epochs_are_counted_over_passes_that_end_in_an_export() -> None:
    register("id")
    line = [*LINE, "phases=[sparse,prune,finetune,export]"]
    config = read(compose(line, argparse.Namespace(config_dir=None, config_name=None))[0])
    assert [epochs_before(config, name) for name in ("sparse", "finetune", "sparse-2", "finetune-2")] == [0, 2, 4, 6]


@pytest.mark.parametrize("tag", ["val/miou", "val_miou", "miou", "valid_miou", "validation/miou"])
def test_the_metric_is_found_as_modules_log_it(tag: str) -> None:
    seen: list[Any] = []
    trainer: Any = SimpleNamespace(
        callback_metrics={"loss": torch.tensor(1.0), tag: torch.tensor(0.5)}, current_epoch=2, is_global_zero=True
    )
    watched = Watched(lambda *shown: seen.append(shown), "miou", before=10)
    watched.on_train_epoch_end(trainer, torch.nn.Module())  # type: ignore[arg-type]
    assert seen == [(12, 0.5)]
    trainer.is_global_zero = False
    watched.on_train_epoch_end(trainer, torch.nn.Module())  # type: ignore[arg-type]
    del trainer.callback_metrics[tag]
    trainer.is_global_zero = True
    watched.on_train_epoch_end(trainer, torch.nn.Module())  # type: ignore[arg-type]
    assert len(seen) == 1, "one process tells, where there is something to tell"
