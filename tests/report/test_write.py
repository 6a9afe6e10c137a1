"""Report and figures: the same bytes, complete, readable from 1 to 200 layers."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim import report
from slim.report import figures, markdown
from slim.report.html import charts
from slim.report.metric import Metric
from slim.report.predictions import Seen, picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_record_gives_the_same_bytes_and_every_picture_of_the_page(tmp_path: Path, make_record: Any) -> None:
    for name in ("a", "b"):
        report.write(tmp_path / name, make_record())
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first == second
    assert set(first) == {
        "report.md",
        "report.html",
        *(f"figures/{name}.png" for name in ("summary", "widths", "gammas", "gammas_by_layer", "history")),
    }
    assert all(content.startswith(SIGNATURE) for name, content in first.items() if name.endswith(".png"))
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", first["report.md"].decode())
    assert shown and set(shown) <= set(first)


def test_every_row_of_a_markdown_table_has_the_same_cells(make_record: Any) -> None:
    page = markdown.render(make_record(), [])
    for block in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize(
    "record", [{}, {"rows": {"dense": {}}}, {"gammas": {"a": []}, "widths": {}}, {"history": {"x": {}}}]
)
def test_a_poor_record_still_makes_a_report(tmp_path: Path, record: dict[str, Any]) -> None:
    report.write(tmp_path, record)
    assert (tmp_path / "report.md").read_text().startswith("# slim")


@pytest.mark.parametrize("layers", [1, 44, 120])
def test_no_label_leaves_the_figure_or_touches_another(layers: int, make_record: Any) -> None:
    record = make_record(layers)
    for figure in (
        figures.widths(record["widths"]),
        figures.by_layer(record["gammas"], record["cut"], record["removed"]),
        figures.distribution(record["gammas"], record["cut"], record["removed"]),
        figures.ridges(record["gammas"], record["cut"], record["removed"]),
        figures.summary(record),
    ):
        figure.draw_without_rendering()  # lays it out
        frame = figure.bbox
        for axes in figure.axes:
            boxes = []
            for axis in (axes.xaxis, axes.yaxis):
                shown = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
                boxes.append([label.get_window_extent() for label in shown])
            for box in (box for group in boxes for box in group):
                # Ticks beyond the limits of an axis have extents too, but are not drawn.
                inside = axes.bbox.expanded(1.02, 1.02)
                if inside.x0 <= (box.x0 + box.x1) / 2 <= inside.x1 or inside.y0 <= (box.y0 + box.y1) / 2 <= inside.y1:
                    assert box.x0 >= frame.x0 - 1 and box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1
            if axes.get_yscale() != "log":
                rows = sorted(boxes[1], key=lambda box: box.y0)
                assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(rows))


def test_exact_zeros_and_a_single_value_have_a_place_on_the_logarithmic_axis() -> None:
    for gammas in ({"a": [0.0] * 8}, {"a": [0.5]}, {"a": [0.0, float("nan"), 0.3]}):
        for drawn in (figures.distribution(gammas, 0.0), figures.by_layer(gammas, 0.0), figures.ridges(gammas, 0.0)):
            drawn.draw_without_rendering()
            assert drawn.axes[0].has_data()


def test_a_run_that_is_rebuilt_while_it_trains_shows_what_its_epochs_cost(make_record: Any) -> None:
    record = make_record()
    assert "slimming" not in figures.all_figures(record)
    record["phases"]["sparse"] |= {"epochs": 4, "slimmed": [{"epoch": 2, "macs": 3000}, {"epoch": 3, "macs": 2000}]}
    record["phases"]["finetune"] = {"epochs": 1}
    (steps,) = figures.all_figures(record)["slimming"].axes[0].patches
    assert (1e6 * steps.get_data().values).round().tolist() == [5000, 5000, 3000, 2000, 1500]


@pytest.mark.parametrize("values", [(-0.5, -0.6, -3.0, -0.4), (0.5, 0.6, -3.0, 0.4), (0.0, 0.0, 0.0, 0.0)])
def test_bars_of_a_negative_metric_are_within_their_axis(values: tuple[float, ...], make_record: Any) -> None:
    """R2 of a network that was cut is easily below zero; zero itself stays in sight, below what is above it."""
    record = make_record()
    record["metric"] = {"name": "r2", "percent": False}
    for row, value in zip(record["rows"].values(), values, strict=True):
        row["metric"] = value
    ladder = charts.ladder(record)
    assert ladder is not None
    for low, high in (ladder["layout"]["yaxis"]["range"], figures.summary(record).axes[0].get_ylim()):
        assert low < high and low <= min(0.0, *values) and high >= max(0.0, *values)


@pytest.mark.parametrize("name", ["$1_$", "caf\udce9", "\\alpha$^$"])
def test_names_are_drawn_letter_by_letter(name: str, make_record: Any) -> None:
    """Of classes, layers, metrics and jobs: a formula that is none, or a folder's name that is no UTF-8, cost a run."""
    record = make_record()
    record["metric"] = {"name": name, "percent": False}
    for key in ("widths", "gammas", "removed"):
        record[key] = {f"{name} {layer}": value for layer, value in record[key].items()}
    image = np.zeros((4, 4, 3))
    drawn = [*figures.all_figures(record).values(), figures.scatter([(1.0, 2.0, name), (2.0, 3.0, "b")], Metric(name))]
    drawn.append(picture([Seen(image, np.int64(0), np.int64(0), np.int64(1))], [name, f"b {name}"]))
    for figure in drawn:
        figure.draw_without_rendering()
