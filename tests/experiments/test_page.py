"""A table between two marks of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.page import fill, spread

MARKS = "<!-- a -->", "<!-- b -->"


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before <!-- a --> old <!-- b --> after <!-- b -->")
    for body in ("| one |", "| two |"):
        fill(page, MARKS, body)
        assert page.read_text() == f"before <!-- a -->\n\n{body}\n\n<!-- b --> after <!-- b -->"


@pytest.mark.parametrize("text", ["nothing", "<!-- a --> only", "<!-- b --> the wrong way <!-- a -->"])
def test_a_page_without_its_marks_stays_as_it_is(text: str, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have the marks"):
        fill(page, MARKS, "table")
    assert page.read_text() == text


def test_mean_and_deviation_of_as_many_as_there_are() -> None:
    assert [spread([]), spread([1.0]), spread([1.0, 2.0]), spread([1.0], "+.1f")] == ["", "1.00", "1.50 ± 0.71", "+1.0"]
