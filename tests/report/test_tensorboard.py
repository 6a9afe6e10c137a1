"""What a run leaves for TensorBoard besides its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slim.report.tensorboard import flat, log_cut, log_hparams


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    found.Reload()
    return found


def test_the_cut_is_drawn_and_drawn_again(tmp_path: Path) -> None:
    for _ in range(2):
        log_cut(tmp_path, widths={"a": [8, 3]}, gammas={"a": [0.0, 0.1, 0.5]}, cut=0.1)
    found = read(tmp_path)
    assert set(found.Tags()["images"]) == {"cut/widths", "cut/gammas", "cut/gammas_by_layer"}
    assert all(len(found.Images(tag)) == 1 for tag in found.Tags()["images"])


def test_a_run_is_one_row(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    record = {"rows": {"dense": {"metric": 0.9, "macs": 100}, "finetuned": {"metric": 0.8, "macs": 25}}}
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
