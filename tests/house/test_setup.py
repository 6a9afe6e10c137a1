"""The set-up files tell the truth about themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_make_help_lists_every_target() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split())
    described = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert targets == described


def test_ci_is_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    assert script.read_text().strip().endswith("make test")


def test_lowest_constraints_cover_every_run_time_dependency() -> None:
    """Each dependency has a lower bound, and `make test-lowest` holds it there."""
    text = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0]
    declared = re.findall(r'^\s*"([\w-]+)', text, re.MULTILINE)
    done = subprocess.run([sys.executable, ".ci/lowest.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split("==")[0] for line in done.stdout.splitlines()] == declared
    assert "lightning" not in declared
