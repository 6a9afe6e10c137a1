"""One table over all jobs, the failed ones included."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from slim.errors import SlimError
from slim.report import sweep
from slim.sweeps.jobs import keep_command


@pytest.fixture
def multirun(tmp_path: Path, make_record: Any) -> Path:
    for index in range(12):
        folder = tmp_path / str(index)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(
            f"- +experiment=vgg_slim\n- prune.ratio=0.{index}\n- data=digits\n"
        )
        record = make_record(seed=index)
        record["rows"]["finetuned"]["macs"] = 1500 + index
        (folder / "report.json").write_text(json.dumps(record))
    (tmp_path / "3" / "report.json").write_text(json.dumps({"status": "failed", "error": "the loss | was NaN"}))
    (tmp_path / "4" / "report.json").write_text("{")
    (tmp_path / "5" / "report.json").unlink()
    (tmp_path / "5" / "error.txt").write_text("killed\n")
    return tmp_path


def test_jobs_come_in_the_order_of_their_numbers(multirun: Path) -> None:
    assert [row[0] for row in sweep.rows(multirun)] == [str(index) for index in range(12)]


def test_only_what_differs_is_told(multirun: Path) -> None:
    assert sweep.rows(multirun)[2][1] == "prune.ratio=0.2"


def test_what_differs_is_told_as_it_was_typed(multirun: Path) -> None:
    """However YAML writes it: in quotes, in several lines; another experiment is a difference, too."""
    long = f"data.dir='/{'a folder/' * 20}'"
    given = ["+experiment=resnet_slim", long, "note='a: b'", 'title="q"', "hydra.verbose=true"]
    text = yaml.safe_dump([*given, "data=digits"], allow_unicode=True)
    assert len(text.splitlines()) > 6
    (multirun / "2" / ".hydra" / "overrides.yaml").write_text(text)
    assert sweep.rows(multirun)[2][1] == " ".join(given[:-1])
    assert sweep.rows(multirun)[1][1] == "+experiment=vgg_slim prune.ratio=0.1"


def test_a_job_that_died_early_hides_no_difference(multirun: Path) -> None:
    (multirun / "5" / ".hydra" / "overrides.yaml").unlink()
    assert sweep.rows(multirun)[2][1] == "prune.ratio=0.2"


def test_the_terminal_shortens_keys_that_stay_clear() -> None:
    short = sweep._shortened(["prune.ratio=0.3 sparse.epochs=2", "prune.ratio=0.5 finetune.epochs=2"])
    assert short["prune.ratio=0.3 sparse.epochs=2"] == "ratio=0.3 sparse.epochs=2"
    (long,) = sweep._shortened(["sparse.lr=0.23564632295215232 seed=12345 model.name=resnet18.x"]).values()
    assert long == "lr=0.2356 seed=12345 name=resnet18.x"


def test_the_terminal_shortens_no_failure(multirun: Path) -> None:
    """Its advice names whole keys, as a user must type them."""
    why = "ratio must be below 1. Got ratio=1.50000 (prune.ratio). Set prune.ratio=0.12345678, or trainer.clip=1."
    (multirun / "3" / "report.json").write_text(json.dumps({"status": "failed", "error": why}))
    column = sweep.table(multirun).columns[1]
    assert str(list(column.cells)[3]) == f"ratio=0.3 failed: {why}"


def test_failed_jobs_say_why_and_do_not_hide_the_others(multirun: Path) -> None:
    rows = sweep.rows(multirun)
    assert "failed: the loss | was NaN" in rows[3][1]
    assert "failed: " in rows[4][1] and "killed" in rows[5][1]
    assert rows[0][2:5] == ["90.00%", "89.50%", "39.1%"]


def test_table_page_and_figure_are_written(multirun: Path) -> None:
    storage = "hydra.sweeper.storage=postgresql://me:{}@host/db"
    for command in (storage.format("secret"), storage.format("secret"), "slim train -m 'a=<1>,2'"):
        keep_command(multirun, command)
    sweep.write(multirun)
    commands = [storage.format("***"), "slim train -m 'a=<1>,2'"]
    (shown,) = re.findall("<pre>(.*?)</pre>", (multirun / "sweep.html").read_text(), re.DOTALL)
    assert html.unescape(shown).splitlines() == commands, "each once, without the password"
    page = (multirun / "sweep.md").read_text()
    assert "\n".join(commands) in page
    assert page.count("\n| ") == 2 + 12 and "the loss \\| was NaN" in page
    assert (multirun / "figures" / "sweep.png").is_file()
    assert len(json.loads((multirun / "sweep.json").read_text())) == 12
    assert sweep.table(multirun).row_count == 12
    # Written again, its own files are no jobs.
    sweep.write(multirun)
    assert (multirun / "sweep.md").read_text() == page


def test_a_place_that_is_no_sweep() -> None:
    with pytest.raises(SlimError, match="directory of jobs"):
        sweep.rows("/nowhere/at/all")
