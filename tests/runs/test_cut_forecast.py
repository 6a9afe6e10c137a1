"""How far a network is on its way to the cut: told after every epoch, for every law, and true."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.chaos.harness import curves
from slim.sparsity import LAWS
from tests.runs.tiny import run

FAR = ("3_sparsity/zero", "3_sparsity/target", "3_sparsity/macs_after_cut", "3_sparsity/ready")


@pytest.mark.parametrize("law", LAWS)
def test_every_law_tells_how_far_it_is(law: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the sparse.shrink of the data's recipe, which means something for some of them."""
    run(tmp_path, f"penalty={law}", "phases=[sparse,prune]")
    found = curves(tmp_path / "sparse")
    epochs = [step + 1 for step, _ in found["2_loss/train"]]  # counted from 0, as Lightning does
    for tag in (*FAR, "4_cost/macs"):
        assert [step for step, _ in found[tag]] == epochs, tag
    assert all(0 <= value <= 1 for tag in FAR for _, value in found[tag])
    said = capfd.readouterr().err
    assert said.count("after the cut") == len(epochs)
    before = said[: said.index("sparse    epoch   1/")]
    assert f"{law}: " in before, "what the law can do in this phase, before it begins"
    assert said.count(f"{law}: ") == 1


def test_the_last_outlook_is_the_cut(tmp_path: Path) -> None:
    report = run(tmp_path, "phases=[sparse,prune]", "prune.ratio=null", "prune.macs=0.4")
    found = curves(tmp_path / "sparse")
    assert found["3_sparsity/macs_after_cut"][-1][1] == pytest.approx(report["achieved"]["macs"])
    assert found["3_sparsity/target"][-1][1] == pytest.approx(report["achieved"]["ratio"])
    assert found["3_sparsity/ready"][-1][1] == float(report["cut"] < 1e-2)


def test_ready_when_what_goes_is_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Surgery in the middle of training included: shares are those of the dense network."""
    line = ("penalty=prox", "penalty.lam=3", "sparse.epochs=6", "sparse.slim_every=2", "prune.ratio=0.3")
    report = run(tmp_path, *line, "phases=[sparse,prune]", "sparse.shrink=null")
    found = curves(tmp_path / "sparse")
    assert found["3_sparsity/ready"][-1][1] == 1
    assert found["3_sparsity/zero"][-1][1] >= 0.3
    assert "ready to prune" in capfd.readouterr().err
    macs = [value for _, value in found["4_cost/macs"]]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] < macs[0] == report["rows"]["dense"]["macs"]
