"""Commands called in this process, in an empty folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slim.command.main import main

Call = Callable[..., Any]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("prune", ...)``: what it printed; ``json=True``: as data; ``code=2``: its one line on stderr."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def perform(*line: str, code: int = 0, as_json: bool = False) -> Any:
        assert main([*line, *(["--json"] if as_json else [])]) == code
        out, err = capsys.readouterr()
        if code:
            assert not out and err.count("\n") == 1, (out, err)
            return err
        return json.loads(out) if as_json else out

    return perform
