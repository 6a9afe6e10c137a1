"""Runs the command lines of the documentation: the programs themselves, in this process, on less data for less time."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from hydra._internal.utils import get_args_parser

import evaluate
import train
from slim.command.compose import register
from slim.command.main import main as slim_main
from slim.command.sweep import _check_jobs, _check_plugins
from tests.runs.tiny import TINY

PROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
EXTRAS = set(re.findall(r"^([\w-]+) = ", PROJECT.split("optional-dependencies]")[1].split("\n\n[")[0], re.MULTILINE))
ELSEWHERE = ("git", "cd", "eval", "tensorboard", "make", "torchrun", "srun")
"""Programs that are not ours, or targets that other tests run; `make` must have the target."""


ALONE = ("hydra/launcher=", "hydra.sweeper.storage=postgresql")
"""Sweeps in other processes, which tests/sweeps starts, or with a server: their jobs are composed, none runs."""


SCENES = ["data.scenes=32", "data.val_scenes=4", "data.test_scenes=4"]
SMALLER = {
    "segmentation_slim": ["model.name=lraspp_resnet8", *SCENES],
    "detection_slim": ["model.name=ssdlite_resnet8", *SCENES],
    "own_slim": ["+data.limit=200", "+module.width=8"],
}
"""For experiments that bring their own model, data and budget, of which ``TINY`` knows nothing."""


def commands(block: str) -> list[str]:
    """The commands of a block: continued lines joined, comments gone."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = [shlex.join(shlex.split(line, comments=True)) for line in joined.splitlines()]
    return [line for line in lines if line]


def execute(command: str) -> None:
    """Run ``command`` in the current folder; what it leaves is what a user would have, only smaller."""
    words = [_newest_run(word) for word in shlex.split(command)]
    if words[2:] and words[2:] == [f"+experiment={name}" for name in SMALLER if f"+experiment={name}" in words]:
        return  # nothing but an experiment: tests/runs/test_configs.py runs each
    if any(word.startswith(ALONE) for word in words):
        check_sweep(words[3:])
    elif words[:2] in (["python", "train.py"], ["slim", "train"]):
        assert train.main(_small(words[2:])) == 0, command
    elif words[0] == "slim":
        assert slim_main(["0.01" if before == "--seconds" else word for before, word in pairwise(words)]) == 0, command
    elif words[0] == "pip":
        extras = {name for word in words for name in "".join(re.findall(r"\[(.*)\]", word)).split(",") if name}
        assert words[1] == "install" and extras <= EXTRAS, command
    elif words[0] == "python" and Path(words[1]).name == "predict.py":
        assert subprocess.run([sys.executable, *words[1:]], capture_output=True).returncode == 0, command
    elif words[0] == "python" and words[1] == "evaluate.py":
        assert evaluate.main(words[2:]) == 0, command
    else:
        assert words[0] in ELSEWHERE, f"nobody knows how to run: {command}"


def check_sweep(overrides: list[str]) -> None:
    """What a sweep does before its first job."""
    register("id")
    _check_plugins(overrides)
    directory, _, varied, _ = _check_jobs(overrides, get_args_parser().parse_args([]))
    assert directory.is_dir() and varied


def _small(words: list[str]) -> list[str]:
    """Less data and fewer epochs, where the command itself says nothing else."""
    if any(word.startswith("resume=") for word in words):
        return words
    words = [re.sub(r"(?<=^hydra\.sweeper\.n_trials=)\d+", "2", word) for word in words]
    given = {word.lstrip("+").partition("=")[0] for word in words}
    less = [
        *TINY,
        "export.max_loss=1",
        "sensitivity.images=32",
        "sensitivity.shares=[0.5]",
        "sparse.epochs=1",
        "finetune.epochs=1",
    ]
    own = next((name for name in SMALLER if f"+experiment={name}" in words), None)
    if own is not None:
        less = [item for item in less if not item.startswith(("data.", "model.", "prune."))] + SMALLER[own]
    return [*words, *(item for item in less if not _decided(item, given))]


def _decided(item: str, given: set[str]) -> bool:
    key = item.partition("=")[0]
    budgets = {"prune.ratio", "prune.macs", "prune.params", "prune.latency"}
    instead = {"model.widths": "model", "sparse.shrink": "penalty.lam"}
    return key in given or (key in budgets and bool(budgets & given)) or instead.get(key) in given


def _newest_run(word: str) -> str:
    """``outputs/vgg_slim/<id>``: the run that an earlier command left there."""
    folder, placeholder, rest = word.partition("<id>")
    if not placeholder:
        return word
    prefix, _, path = folder.rpartition("=")
    runs = sorted(
        (run for run in Path(path).glob("*") if (run / "state.json").is_file()), key=lambda run: run.stat().st_mtime
    )
    return f"{prefix}{'=' * bool(prefix)}{runs[-1]}{rest}"
