"""A law of one's own, by the import path of its class, in runs and callbacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from slim.errors import SlimError
from slim.lightning import SparseTraining
from slim.sparsity import build
from tests.runs.tiny import run
from tests.sparsity import own

RIDGE = "tests.sparsity.own.Ridge"


def test_a_run_trains_under_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["penalty=own", f"penalty.name={RIDGE}", "phases=[sparse]", "sparse.shrink=null"]

    def largest(strength: float) -> float:
        run(tmp_path / f"{strength}", *given, f"+penalty.strength={strength}")
        weights = load_file(tmp_path / f"{strength}" / "model.safetensors")
        return float(weights["features.1.weight"].abs().max())

    assert largest(5.0) < 0.7 * largest(0.0)
    assert "ridge: strength 5" in capfd.readouterr().err
    run(tmp_path / "bad", *given, "+penalty.strenght=1", code=2)
    assert "Did you mean strength?" in capfd.readouterr().err


def test_it_is_built_like_the_others() -> None:
    law = build(RIDGE, strength=2.0)
    assert isinstance(law, own.Ridge) and law.strength == 2.0
    assert build("tests.sparsity.own.WithAnyOption", strength=3.0).strength == 3.0  # type: ignore[attr-defined]
    assert isinstance(SparseTraining(RIDGE, strength=2.0).law, own.Ridge)


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("tests.sparsity.own.Ridg", {}, "Did you mean Ridge"),
        ("tests.sparsity.owl.Ridge", {}, "Did you mean own"),
        ("tests.sparsity.own.annotations", {}, "must be a class or function to call"),
        (RIDGE, {"lam": 1.0}, "has no option lam"),
        ("tests.sparsity.own.Lacking", {}, "without attach, before_step, after_step"),
    ],
)
def test_what_is_none_is_refused(path: str, options: dict[str, float], says: str) -> None:
    with pytest.raises(SlimError, match=says):
        build(path, **options)


def test_shrink_needs_a_lam() -> None:
    with pytest.raises(SlimError, match="shrink must scale a lam"):
        SparseTraining(RIDGE, shrink=1.0)
