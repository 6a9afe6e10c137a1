"""The shape of the code: imports run one way, and functions, classes and files are of a size that can be read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "slim").rglob("*.py"))
LINES_OF_A_FUNCTION = 50
"""Beside its docstring, which says in as many lines as it takes what each argument is."""
LINES_OF_A_FILE = 400


def test_no_modules_import_each_other_in_a_circle(tmp_path: Path) -> None:
    """Imports inside functions count: they would only hide the circle."""
    graph = grimp.build_graph("slim", cache_dir=str(tmp_path))
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name of every function, and its lines without the docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_functions_and_files_can_be_read() -> None:
    long = [f"{path.name}: {name}, {lines} lines" for path in FILES for name, lines in functions(path)
            if lines > LINES_OF_A_FUNCTION]  # fmt: skip
    assert not long
    lengths = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > LINES_OF_A_FILE}
