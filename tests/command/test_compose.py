"""Hydra is given the command's line and gives back what Lightning's launcher needs to start other processes."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig

from slim.command import evaluate, run
from slim.command.compose import CONF, compose, hydra_job, quoted, register, run_job
from tests.runs.tiny import TINY

ROOT = Path(__file__).parents[2]


def test_the_configuration_is_that_of_the_checkout() -> None:
    assert ROOT / "conf" == CONF


@pytest.mark.parametrize("given", ["trainer.options={max_time:1}", "trainer.options.max_time=1"])
def test_arguments_of_lightnings_trainer_need_no_plus(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As conf/trainer says."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "_run", lambda config, *_: seen.append(config["trainer"]["options"]) or 0)
    assert run.main([given]) == 0
    assert seen == [{"max_time": 1}]


@pytest.mark.parametrize(
    ("given", "shrink"),
    [([], 3.0), (["penalty.lam=1e-3"], None), (["++penalty.lam=1e-3"], None), (["penalty=prox"], 3.0)],
)
def test_a_lam_that_is_given_takes_the_place_of_the_recipes_shrink(
    given: list[str], shrink: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be replaced: the most a scale can lose in the phase gives lam."""
    seen: list[Any] = []
    monkeypatch.setattr(run, "_run", lambda config, *_: seen.append(config["sparse"]["shrink"]) or 0)
    assert run.main(["+experiment=vgg_slim", *given]) == 0
    assert seen == [shrink]


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        (["optimizer=sgd"], [0.05, 0.02]),
        (["optimizer=adamw"], [None, None]),
        (["optimizer.lr=0.2"], [None, None]),
        (["optimizer.lr=0.2", "sparse.lr=0.3"], [0.3, None]),
    ],
)
def test_a_learning_rate_that_is_given_takes_the_place_of_the_recipes(
    given: list[str], rates: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW at the rate of SGD is at chance."""
    seen: list[Any] = []
    monkeypatch.setattr(
        run, "_run", lambda config, *_: seen.extend(config[kind]["lr"] for kind in ("sparse", "finetune")) or 0
    )
    assert run.main(["+experiment=vgg_slim", *given]) == 0
    assert seen == rates


@pytest.mark.parametrize("command", [["train.py"], ["slim", "train"]])
def test_a_job_sees_the_line_that_starts_it_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of the program that called do not reach Hydra; its subcommand stays."""
    register("id")
    monkeypatch.setattr(sys, "argv", [*command, "seed=1"])
    line = ["seed=2", "hydra.output_subdir=null", f"hydra.run.dir={quoted(tmp_path)}"]
    seen: list[list[str]] = []
    cfg = compose(line, get_args_parser().parse_args([]))[1]
    run_job(cfg, tmp_path, line, lambda cfg: seen.append(list(sys.argv)))
    hydra_job(line, lambda cfg: seen.append(list(sys.argv)))
    assert seen == [[*command, *line], [*command, *line]]
    assert sys.argv == [*command, "seed=1"]


def test_a_run_remembers_where_its_configuration_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the folder is called, and from whichever folder it is gone on with, evaluated, or repeated."""
    conf, other = tmp_path / "it's my conf, ü=1", tmp_path / "other"
    for folder in (conf / "experiment", other):
        folder.mkdir(parents=True)
    body = "# @package _global_\ndefaults:\n  - vgg_slim\nname: small\n"
    (conf / "experiment" / "small.yaml").write_text(body)
    tiny = [*TINY, "phases=[baseline]", "baseline.epochs=1"]
    monkeypatch.chdir(tmp_path)
    given = ["--config-dir", conf.name, "+experiment=small", *tiny]
    assert run.main([*given, "hydra.run.dir=one"]) == 0
    assert run.main(["--multirun", *given, "hydra.sweep.dir=."]) == 0
    monkeypatch.chdir(other)
    assert run.main([f"resume={tmp_path / 'one'}", "latency_seconds=0.002"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "0")]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)
    for place in ("one", "0"):
        command = json.loads((tmp_path / place / "report.json").read_text())["command"]
        assert shlex.split(command)[2:5] == ["--config-dir", str(conf), "+experiment=small"]


def test_a_single_job_is_run_as_hydra_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed once; the same files, log and configuration as ``hydra.main`` leaves, which composes three times."""
    register("id")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    seen: dict[str, object] = {}

    def job(cfg: Any) -> None:
        logging.getLogger("a job").warning("it ran")
        seen[HydraConfig.get().runtime.output_dir] = cfg

    def left(place: Path) -> dict[str, str]:
        """Every file's text, without the clock; of Hydra's own settings, which name the place, the names only."""
        texts = {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*") if path.is_file()}
        texts[".hydra/hydra.yaml"] = " ".join(re.findall(r"^  (\w+):", texts[".hydra/hydra.yaml"], re.MULTILINE))
        texts["train.log"] = re.sub(r"^[-\d :,.]+", "", texts["train.log"])
        return texts

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place in (ours, theirs):
        line = ["seed=2", "trainer.clip=0.5", f"hydra.run.dir={quoted(place)}"]
        if place == ours:
            run_job(compose(line, get_args_parser().parse_args([]))[1], place, line, job)
        else:
            hydra_job(line, job)
    assert seen[str(ours)] == seen[str(theirs)]
    assert left(ours) == left(theirs)
    assert {".hydra/config.yaml", ".hydra/overrides.yaml", "train.log"} <= set(left(ours))
    with pytest.raises(ZeroDivisionError):
        run_job(compose([], get_args_parser().parse_args([]))[1], ours, [], lambda cfg: 1 / 0)
