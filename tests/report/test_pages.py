"""report.html and sweep.html: complete, equal to report.json, of bounded size; in a browser without a complaint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim.report import sweep
from slim.report.html import Job, jobs_page, run_page
from slim.report.html.jobs import best_job
from slim.report.html.run import LEFT_OUT
from slim.report.pareto import front
from tests.report.browser import CHROMIUM, Page, browser

MEGABYTE = 10**6


def element(page: str, name: str) -> Any:
    (text,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    return json.loads(text)


@pytest.fixture
def full(make_record: Any) -> dict[str, Any]:
    """A record with everything a page shows, and with text that is none of HTML's business."""
    record: dict[str, Any] = make_record(7)
    layers = list(record["widths"])
    return record | {
        "command": "python train.py +experiment=toy 'model.widths=[8, M]' note='</script><b>'",
        "layer_macs": {name: [100 * (index + 1), 40] for index, name in enumerate(layers)},
        "layer_ms": {name: [0.2, 0.1 / (index + 1)] for index, name in enumerate(layers)},
        "why_kept": dict.fromkeys(layers, "rank above the cut"),
        "notes": ["a <note> & more"],
    }


def jobs(make_record: Any) -> list[Job]:
    found = []
    for index, (metric, macs) in enumerate([(0.80, 1000), (0.90, 2000), (0.85, 2500), (0.95, 4000)]):
        record = make_record(3, seed=index)
        record["rows"]["finetuned"] |= {"metric": metric, "macs": macs}
        record["phases"] = {"finetune": {"epochs": 1, "val": metric - 0.01}}
        found.append(Job(str(index), f"prune.ratio=0.{index}", record, f"{index}/report.html"))
    found.append(Job("4", "prune.ratio=0.9", {"status": "failed", "error": "the <loss> was NaN"}))
    return [*found, Job("5", "prune.ratio=0.8", {"status": "running"})]


def test_names_in_figures_are_text(make_record: Any) -> None:
    """plotly.js takes markup in what it is given to write, links included."""
    record, name = make_record(2), '<a href="x">conv</a>'
    record |= {
        "widths": {name: [8, 4]},
        "metric": {"name": "<b>iou</b>", "mode": "max", "percent": True},
        "history": {"sparse": {"val_<b>iou</b>": [0.1, 0.2]}},
    }
    figures = element(run_page(record), "figures")
    assert "&lt;a href=" in json.dumps(figures)
    assert all(tag not in json.dumps(figures) for tag in ("<a", "<b>"))


def test_the_numbers_on_the_page_are_those_of_the_report(full: dict[str, Any]) -> None:
    page = run_page(full)
    whole = {key: value for key, value in full.items() if key not in LEFT_OUT}
    assert element(page, "report") == json.loads(json.dumps(whole))
    seen = re.sub("(?s)<script.*?</script>", "", page)
    assert "&lt;b&gt;" in seen and "<b>'" not in seen and "a <note>" not in seen, "text is text"
    figures = element(page, "figures")
    assert set(figures) == {"ladder", "costs", "gammas", "widths", "metric", "loss"}
    assert all(f'<div id="{name}"' in page for name in figures)
    drawn = {bar["name"]: sum(bar["y"]) for bar in figures["gammas"]["data"]}
    gone = [flag for flags in full["removed"].values() for flag in flags]
    assert drawn == {"kept": len(gone) - sum(gone), "removed": sum(gone)}
    assert [bar["x"] for bar in figures["widths"]["data"]] == [
        list(ends) for ends in zip(*full["widths"].values(), strict=True)
    ]
    assert figures["ladder"]["data"][0]["text"] == ["90.00%", "89.00%", "40.00%", "89.50%"]


def test_a_page_needs_nothing_but_itself(full: dict[str, Any]) -> None:
    page = run_page(full)
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page)
    assert page == run_page(full), "the same record, the same page"


def test_the_page_of_a_large_network_stays_small(full: dict[str, Any], make_record: Any) -> None:
    large = full | {key: make_record(200)[key] for key in ("widths", "gammas", "removed")}
    large["gammas"] = {name: values * 20 for name, values in large["gammas"].items()}
    large["removed"] = {name: values * 20 for name, values in large["removed"].items()}
    large["history"] = {"sparse": {"train_loss": [0.123456789] * 3000, "val_accuracy": [0.5] * 3000}}
    assert sum(map(len, large["gammas"].values())) > 80_000
    assert len(run_page(large).encode()) < 2 * MEGABYTE


@pytest.mark.parametrize(
    "record", [{}, {"rows": {"dense": {}}}, {"gammas": {"a": []}, "widths": {}}, {"history": {"x": {}}}]
)
def test_a_poor_record_still_makes_a_page(record: dict[str, Any]) -> None:
    assert element(run_page(record), "report") == {key: value for key, value in record.items() if key not in LEFT_OUT}


def test_an_error_is_no_percentage_and_needs_no_baseline(full: dict[str, Any]) -> None:
    full["metric"] = {"name": "mae", "mode": "min", "percent": False}
    full["rows"]["dense"]["metric"] = None
    page = run_page(full)
    assert "mae 0.895 (+0.005 against the sparse network)" in page.lower()
    assert element(page, "figures")["ladder"]["layout"]["yaxis"]["title"]["text"] == "mae"


def test_jobs_best_front_and_failures(make_record: Any) -> None:
    found = jobs(make_record)
    page = jobs_page("sweep", found)
    assert best_job(found) is found[3]
    assert "the &lt;loss&gt; was NaN" in page and "4 finished, 1 failed, 1 running" in page
    line, marks = element(page, "figures")["against_macs"]["data"]
    assert line["x"] == [20, 40, 80] and line["y"] == pytest.approx([80, 90, 95])
    assert marks["marker"]["symbol"] == ["circle", "circle", "circle", "star"]
    assert all(f"prune.ratio=0.{index}" in text for index, text in enumerate(marks["customdata"]))
    told = element(page, "report")
    assert all(told[job.name]["rows"] == job.record["rows"] for job in found if job.state == "finished")


def test_held_out_data_choose(make_record: Any) -> None:
    """The figure of the best by test data would be too good; where one job has none, there is nothing else."""
    found = jobs(make_record)
    found[1].record["phases"]["finetune"]["val"] = 0.99  # type: ignore[index]
    assert best_job(found) is found[1]
    found[0].record["phases"] = {}  # type: ignore[index]
    assert best_job(found) is found[3]


def test_of_an_error_less_is_better(make_record: Any) -> None:
    found = jobs(make_record)
    for job in found[:4]:
        job.record["metric"] = {"name": "mae", "mode": "min", "percent": False}  # type: ignore[index]
    assert best_job(found) is found[0]
    assert element(jobs_page("sweep", found), "figures")["against_macs"]["data"][0]["x"] == [20]


def test_of_different_metrics_none_is_best(make_record: Any) -> None:
    found = jobs(make_record)
    found[0].record["metric"] = {"name": "mae", "mode": "min", "percent": False}  # type: ignore[index]
    page = jobs_page("sweep", found)
    assert element(page, "figures") == {} and "Best:" not in page
    assert ">mae 0.8<" in page and ">accuracy 90.00%<" in page and "metric before" in page
    assert sweep.figure(found) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_the_front_is_what_nobody_beats(points: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)

    found = [points[index] for index in front([(float(cost), float(value)) for cost, value in points])]
    assert found == sorted({point for point in points if not beaten(point)})


def test_jobs_without_pictures_make_no_page(tmp_path: Path, make_record: Any) -> None:
    for name, page in (("a", None), ("b", "report.html")):
        record = make_record(2)
        record["paths"]["page"] = page
        (tmp_path / name / "0").mkdir(parents=True)
        (tmp_path / name / "0" / "report.json").write_text(json.dumps(record))
        sweep.write(tmp_path / name)
    assert not (tmp_path / "a" / "sweep.html").exists() and (tmp_path / "b" / "sweep.html").is_file()


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_pages_open_from_a_file_without_a_complaint(
    chromium: Page, tmp_path: Path, full: dict[str, Any], make_record: Any
) -> None:
    """Light and dark, a table that sorts, every figure drawn."""
    pages = {"run": run_page(full), "jobs": jobs_page("sweep", jobs(make_record)), "poor": run_page({})}
    paper = set()
    for name, content in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(content, encoding="utf-8")
        for dark in (False, True):
            chromium.open(file.as_uri(), dark=dark)
            drawn = "document.querySelectorAll('.js-plotly-plot .main-svg').length"
            chromium.until(f"{drawn} >= {len(element(content, 'figures'))}")
            paper.add(chromium.value("getComputedStyle(document.body).backgroundColor"))
    assert len(paper) == 2
    assert chromium.complaints == []
    chromium.open((tmp_path / "run.html").as_uri())
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => +row.cells[8].dataset.sort)"
    before = chromium.value(column)
    chromium.value("document.querySelectorAll('table.sortable th')[8].click()")
    assert chromium.value(column) == sorted(before) != before
