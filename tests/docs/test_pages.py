"""Every code block of the documentation runs, page by page, in an empty folder."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slim.runs.failures import quiet
from tests.docs.commands import commands, execute
from tests.lightning.modules import Plain, images

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RUNS = ("python", "bash")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a handful of photographs in it, where the examples' modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    chance = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 4)):
        for kind in ("cat", "dog"):
            folder = tmp_path / "photos" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(chance.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{number}.jpg")
    # Files that a page shows under their names.
    for page in PAGES:
        for text in (text for language, text in blocks(page) if language == "yaml"):
            if named := re.search(r"^# (my_conf/\S+)$", text, re.MULTILINE):
                place = tmp_path / named[1]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_every_block_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slim.criteria import CRITERIA

    monkeypatch.setattr("slim.criteria.registry.CRITERIA", dict(CRITERIA))
    # Classes of a page belong to a module that can be imported, as a user's would.
    module = ModuleType(f"page_{page.stem.replace('-', '_').lower()}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scope = vars(module)
    if page.stem == "README":
        scope |= {"mine": Plain(), "data": images()}  # which it leaves to its reader
    for language, text in blocks(page):
        if language == "bash":
            for command in commands(text):
                execute(command)
        elif language == "python":
            with quiet():  # Lightning's tips for small data
                _run(text, scope, page)


@pytest.mark.parametrize(
    ("group", "page"),
    [("criterion", "budgets"), ("schedule", "budgets"), ("penalty", "laws"), ("hydra/launcher", "sweeps")],
)
def test_every_choice_is_on_its_page(group: str, page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    choices = [path.stem for path in (ROOT / "conf" / group).glob("*.yaml")]
    assert choices and [choice for choice in choices if f"`{choice}`" not in text] == []


def test_every_language_is_known() -> None:
    """A block that should run and does not say what it is would be skipped in silence."""
    found = {(page.stem, language) for page in PAGES for language, _ in blocks(page)}
    assert {language for _, language in found} <= {*RUNS, "", "yaml", "mermaid", "dockerfile", "toml"}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    # The theme's maker announces a successor on every build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "slim.lightning.sparse.SparseTraining" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")


def _run(text: str, scope: dict[str, Any], page: Path) -> None:
    if ">>>" not in text:
        exec(compile(text, str(page), "exec"), scope)
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(text, scope, page.stem, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=flags)
    runner.run(test, clear_globs=False)
    scope.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0
