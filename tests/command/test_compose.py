"""Hydra is given the command's line and gives back what Lightning's launcher needs to start other processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slim.command.compose import CONF, hydra_job, quoted, register

ROOT = Path(__file__).parents[2]


def test_the_configuration_is_that_of_the_checkout() -> None:
    assert ROOT / "conf" == CONF


@pytest.mark.parametrize("command", [["train.py"], ["slim", "train"]])
def test_a_job_sees_the_line_that_starts_it_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of the program that called do not reach Hydra; its subcommand stays."""
    register("id")
    monkeypatch.setattr(sys, "argv", [*command, "seed=1"])
    line = ["seed=2", "hydra.output_subdir=null", f"hydra.run.dir={quoted(tmp_path)}"]
    seen: list[list[str]] = []
    hydra_job(line, lambda cfg: seen.append(list(sys.argv)))
    assert seen == [[*command, *line]]
    assert sys.argv == [*command, "seed=1"]
