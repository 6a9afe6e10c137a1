"""The final table shows every number in full."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from slim import report
from slim.report import deployment, markdown, tables


def text(record: dict[str, Any], width: int) -> str:
    buffer = io.StringIO()
    report.show(record, Console(file=buffer, width=width))
    return buffer.getvalue()


def test_a_reader_that_leaves_does_not_end_the_process(make_record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(BrokenPipeError):
        report.show(make_record())


def test_every_network_has_one_row_of_all_columns(make_record: Any) -> None:
    rows = tables.cells(make_record())
    assert [row[0].value for row in rows] == ["dense", "sparse", "rebuilt", "fine-tuned"]
    assert {len(row) for row in rows} == {len(tables.columns({}))}


def test_changes_are_against_the_dense_network(make_record: Any) -> None:
    record = make_record()
    dense, _, _, thin = tables.cells(record)
    assert all(cell.change == "" for cell in dense)
    cells = dict(zip(tables.columns({}), thin, strict=True))
    assert cells["MACs"].change == cells["FLOPs"].change == "-70.0%"
    assert cells["accuracy"].change == "-0.50 pt"
    assert cells["ms, batch 64"].change == "-60.0%"


def test_without_a_baseline_accuracy_is_against_the_sparse_network(make_record: Any) -> None:
    record = make_record()
    record["rows"]["dense"]["metric"] = None
    assert [row[1].change for row in tables.cells(record)] == ["", "", "-49.0 pt", "+0.50 pt"]


def test_flops_are_twice_the_macs(make_record: Any) -> None:
    row = dict(zip(tables.columns({}), tables.cells(make_record())[0], strict=True))
    assert (row["MACs"].value, row["FLOPs"].value) == ("5000", "10.00 k")


def test_eighty_columns_cut_nothing_off(make_record: Any) -> None:
    record = make_record()
    for row in record["rows"].values():
        row.update(params=20_035_018, macs=398_136_320)
    shown = text(record, 80)
    assert "…" not in shown
    assert "20.04 M" in shown and "796.3 M" in shown and "fine-tuned" in shown


def test_paths_and_the_command_stand_unbroken_on_a_line(make_record: Any) -> None:
    record = make_record()
    record["paths"]["artifact"] = "/".join(["folder"] * 30) + "/model.safetensors"
    lines = text(record, 60).splitlines()
    assert any(line.endswith(record["paths"]["artifact"]) for line in lines)
    assert any("tensorboard --logdir 'out dir'" in line for line in lines)


@pytest.mark.parametrize("record", [{}, {"rows": {}}, {"rows": {"dense": {"metric": None}}}, {"rows": {"dense": None}}])
def test_what_a_record_lacks_is_a_dash_not_an_error(record: dict[str, Any]) -> None:
    assert "MACs" in text(record, 80)


def test_a_value_that_is_no_number_is_a_dash(make_record: Any) -> None:
    record = make_record()
    record["rows"]["finetuned"].update(metric=float("nan"), macs=None, latency_ms_b1=float("inf"))
    row = tables.cells(record)[-1]
    assert [cell.value for cell in (row[1], row[4], row[5], row[6])] == ["-"] * 4


def test_a_table_leaves_its_record_alone(make_record: Any) -> None:
    record = make_record()
    before = copy.deepcopy(record)
    text(record, 80)
    assert record == before


def test_a_file_that_is_slower_than_the_dense_one_is_told_with_what_helps(make_record: Any) -> None:
    record = make_record()
    times = {"dense fp32": (1.0, 20.0), "thin fp32": (1.05, 42.0), "dense int8": (1.0, 9.0), "thin int8": (0.8, 5.0)}
    record["export"] = {
        "files": {},
        "ladder": [
            {"name": name, "metric": 0.5, "bytes": 9, "latency_ms_b1": one, "latency_ms_b64": many}
            for name, (one, many) in times.items()
        ],
    }
    record["widths"] = {"a": [16, 13]}
    line = "Batch 64 in ONNX Runtime: the thin network in fp32 takes 2.10 x the time of the dense one."
    (told,) = deployment.slower(record)
    assert told.startswith(f"{line} Some widths") and "prune.round_to=auto" in told
    assert told in text(record, 200) and told in markdown.render(record, [])
    record["notes"] = ["prune: round_to=auto is 1: ..."]
    assert "prune.round_to=8 avoids them" in deployment.slower(record)[0]
    record["widths"] = {"a": [16, 8], "b": [10, 10]}  # the advice was followed where something went
    assert deployment.slower(record) == [line]
