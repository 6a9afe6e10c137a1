"""The set-up files tell the truth about themselves."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_make_help_lists_every_target() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split())
    described = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert targets == described


def test_ci_is_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run must be executable"
    assert re.findall(r"\bmake .*?(?= \|\|)", script.read_text()) == ["make test"]


def test_ci_passes_on_what_make_says(tmp_path: Path) -> None:
    for code in (0, 2):
        assert _ci(tmp_path, f"exit {code}").returncode == code


def test_ci_ends_what_never_ends(tmp_path: Path) -> None:
    """A stand-in for make that hangs is ended, and the line says why."""
    done = _ci(tmp_path, "exec sleep 600", LIMIT="0.5s")
    assert done.returncode == 124
    assert done.stderr.startswith(".ci/run must end within 0.5s.")


def _ci(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "make").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "make").chmod(0o755)
    given = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    return subprocess.run([ROOT / ".ci" / "run"], env=given, capture_output=True, text=True, timeout=120)


def test_the_workflow_is_ci_run_on_every_python() -> None:
    """Nothing but `.ci/run`, from the oldest Python that pyproject.toml allows on."""
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    versions = job["strategy"]["matrix"]["python"]
    minors = [int(version.removeprefix("3.")) for version in versions]
    assert versions[0] == oldest and minors == list(range(minors[0], minors[-1] + 1))


def test_every_module_has_tests_in_the_inner_loop() -> None:
    """`make check` finds tests for a change in any module; a changed test is chosen itself."""
    tests_of = runpy.run_path(str(ROOT / ".ci" / "touched.py"))["tests_of"]
    for path in sorted([*(ROOT / "slim").rglob("*.py"), *(ROOT / "tests").glob("*/test_*.py")]):
        name = str(path.relative_to(ROOT))
        assert name in tests_of(name)
        assert any(found.startswith("tests/") for found in tests_of(name)) or path.parent.name == "slim", name
    assert "tests/criteria/test_gamma.py" in tests_of("slim/criteria/gamma.py")
    assert "tests/house" in tests_of("Makefile")


def test_nothing_runs_a_console_script() -> None:
    """The first line of one names its Python, and breaks at a space in the path of the checkout."""
    for name in ("Makefile", ".pre-commit-config.yaml", ".ci/run"):
        programs = set(re.findall(r"(?:\.venv[\w-]*|\$\(VENV\))/bin/([\w-]+)", (ROOT / name).read_text()))
        assert programs <= {"python"}, name


def test_lowest_constraints_cover_every_run_time_dependency() -> None:
    """Each dependency has a lower bound, and `make test-lowest` holds it there."""
    text = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0]
    declared = re.findall(r'^\s*"([\w-]+)', text, re.MULTILINE)
    done = subprocess.run([sys.executable, ".ci/lowest.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split("==")[0] for line in done.stdout.splitlines()] == declared
    assert "lightning" not in declared
