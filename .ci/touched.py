"""Print the tests that belong to what changed since the main branch, uncommitted and new files included.

A quick choice, not a proof: ``make test`` runs everything. A changed test file is chosen itself; a module brings the
test of its name, else the folder of its part, the tests that import it, and its own doctests.
"""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def changed() -> set[str]:
    """Paths that differ from where this branch left the main branch; on the main branch, from the last commit."""
    base = next(filter(None, (_git("merge-base", "HEAD", name) for name in ("main", "origin/main", "HEAD"))), [])
    return {*_git("diff", "--name-only", *base), *_git("ls-files", "--others", "--exclude-standard")}


def tests_of(path: str) -> set[str]:
    """Test files and folders of one changed path, as arguments for pytest."""
    parts = Path(path).parts
    if parts[0] == "tests":
        found = {path} if parts[-1].startswith("test_") else _tests_in(Path(*parts[:-1]))
    elif parts[0] == "slim" and path.endswith(".py"):
        found = {path} | _twins(parts) | _importers(path)
    elif path.endswith(".py"):
        found = _importers(path) | ({"tests/cli"} if len(parts) == 1 else set())
    elif parts[0] == "conf":
        found = {str(test.relative_to(ROOT)) for test in ROOT.glob("tests/*/test_conf*.py")}
    elif path.endswith(".md"):
        found = {"tests/report/test_readme.py"}
    else:
        found = {"tests/house"}
    return {name for name in found if (ROOT / name).exists()}


def _twins(parts: tuple[str, ...]) -> set[str]:
    """``slim/part/name.py``: ``tests/part/test_name.py``, else all of ``tests/part``."""
    part, name = Path(parts[1]).stem, Path(parts[-1]).stem
    twin = f"tests/{part}/test_{name}.py"
    return {twin} if (ROOT / twin).is_file() else _tests_in(Path("tests", part))


def _tests_in(folder: Path) -> set[str]:
    return {str(folder)} if any((ROOT / folder).glob("test_*.py")) else set()


def _importers(path: str) -> set[str]:
    """The tests that import the module at ``path`` by its full name."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if module == "slim" or (module.count(".") == 1 and path.endswith("__init__.py")):
        return set()  # nearly all tests import a part; its own folder stands for them
    return {str(test.relative_to(ROOT)) for test in ROOT.glob("tests/*/test_*.py") if module in _imports(test)}


@functools.cache
def _imports(test: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(test.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _git(*command: str) -> list[str]:
    line = ["git", "-c", "core.quotepath=off", *command]  # names with umlauts as they are
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    chosen = set().union(*map(tests_of, changed()))
    folders = {name for name in chosen if (ROOT / name).is_dir()}
    print(*sorted(folders | {name for name in chosen if str(Path(name).parent) not in folders}))
