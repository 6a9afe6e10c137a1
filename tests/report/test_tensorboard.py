"""What a run leaves for TensorBoard besides its curves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from slim.report import tags
from slim.report.tensorboard import OVERVIEW, log_cut, log_overview
from tests.report.board import hparams


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def test_the_cut_is_drawn_and_drawn_again(tmp_path: Path) -> None:
    for _ in range(2):
        log_cut(tmp_path, widths={"a": [8, 3]}, gammas={"a": [0.0, 0.1, 0.5]}, cut=0.1)
    found = read(tmp_path)
    assert set(found.Tags()["images"]) == {"cut/widths", "cut/gammas", "cut/gammas_by_layer", "cut/gamma_ridges"}
    assert all(len(found.Images(tag)) == 1 for tag in found.Tags()["images"])


def test_a_run_is_one_row_of_what_was_changed(tmp_path: Path, make_record: Any) -> None:
    record = make_record()
    for ratio in (0.3, 0.5):
        log_overview(tmp_path, record, ["+experiment=vgg_slim", f"prune.ratio={ratio}", "phases=[sparse]", "output=x"])
    found = read(tmp_path / OVERVIEW)
    rows = record["rows"]
    assert {tag: found.Scalars(tag)[0].value for tag in found.Tags()["scalars"]} == pytest.approx(
        {
            "result/accuracy": rows["finetuned"]["metric"],
            "result/gap_to_dense": rows["finetuned"]["metric"] - rows["dense"]["metric"],
            "result/macs": rows["finetuned"]["macs"],
            "result/params": rows["finetuned"]["params"],
            "result/ms_batch_1": rows["finetuned"]["latency_ms_b1"],
            "result/ms_batch_64": rows["finetuned"]["latency_ms_b64"],
        }
    )
    assert hparams(tmp_path / OVERVIEW) == {"experiment": "vgg_slim", "prune.ratio": 0.5, "phases": "[sparse]"}


def test_what_a_sweep_varies_comes_first(tmp_path: Path) -> None:
    """TensorBoard ranks the columns over all runs, unless a run brings a ranking of its own."""
    from tensorboard.plugins.hparams import metadata

    log_overview(tmp_path, {}, ["seed=1"])
    assert metadata.EXPERIMENT_TAG not in read(tmp_path / OVERVIEW).PluginTagToContent(metadata.PLUGIN_NAME)


def test_text_tells_command_networks_plan_and_notes(tmp_path: Path, make_record: Any) -> None:
    record = make_record() | {"command": "python train.py +experiment=toy"}
    log_overview(tmp_path, record)
    found = read(tmp_path / OVERVIEW)
    pages = {
        tag.removesuffix("/text_summary"): found.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in found.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    names = ["overview/1_command", "overview/2_networks", "overview/3_plan", "overview/4_notes"]
    assert list(pages) == names
    assert record["command"] in pages[names[0]] and "89.50%" in pages[names[1]] and "layer5" in pages[names[2]]


@pytest.mark.parametrize("metric", ["f1(macro)", "r^2", "top|5"])
def test_a_name_with_marks_of_expressions_has_its_chart(metric: str) -> None:
    expression = next(iter(tags.layout(metric)["cockpit"].values()))[1][0]
    for name in (f"val/{metric}", f"train/{metric}", metric):
        assert re.fullmatch(expression, tags.in_reading_order(name, metric))


def test_every_chart_of_the_cockpit_has_curves() -> None:
    """The layout finds, by its expressions, what a run logs; nothing stands in two charts, and what matters first."""
    logged = ("train/loss", "train/loss_step", "val/loss", "val/miou", "train/miou", "lr", "macs", "epoch", "val/extra")
    law = ("penalty", "lam", "zero", "target", "macs_after_cut", "ready", "budget_macs")
    shown = [tags.in_reading_order(name, "miou") for name in (*logged, *(f"sparsity/{name}" for name in law))]
    assert len(set(shown)) == len(shown)
    charts = [chart[1][0] for chart in tags.layout("miou")["cockpit"].values()]
    found = [[tag for tag in shown if re.search(expression, tag)] for expression in charts]
    assert all(found)
    assert len({tag for chart in found for tag in chart}) == sum(len(chart) for chart in found)
    assert [tag for tag in sorted(shown)[:6]] == [
        *("1_miou/train", "1_miou/val", "2_loss/penalty", "2_loss/train", "2_loss/train_step", "2_loss/val"),
    ]
