"""The examples of docs/any-network.md run, and its reasons are those that the core gives."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from slim.selection.reasons import ADVICE

PAGE = Path(__file__).parents[2] / "docs" / "any-network.md"


def test_examples_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 10 and not failed


def test_every_advice_has_a_row() -> None:
    text = PAGE.read_text()
    assert [pattern for pattern, _ in ADVICE if not re.search(pattern, text)] == []
