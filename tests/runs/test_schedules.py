"""Schedules through the pipeline: every pass meets its budget of the dense network, and says what it goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import slim
import train
from slim.channels import count_macs, plan_of
from slim.models import vgg
from slim.runs.checkpoint import Saver
from slim.runs.record import timeless
from slim.runs.signals import Interrupted
from tests.runs.tiny import run

SHORT = ("sparse.epochs=1", "finetune.epochs=1")
EXAMPLE = torch.zeros(1, 1, 8, 8)


def dense() -> torch.nn.Module:
    return vgg(widths=[8, "M", 16], num_classes=10, in_channels=1)


def network(place: Path) -> torch.nn.Module:
    return slim.load(place, dense())


def macs_kept(place: Path) -> float:
    return count_macs(network(place), EXAMPLE) / count_macs(dense(), EXAMPLE)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("budget", "penalty"), [("prune.ratio=0.6", "target"), ("prune.macs=0.4", "l1")])
def test_every_pass_meets_its_share_of_the_dense_network(budget: str, penalty: str, tmp_path: Path) -> None:
    given = ("prune.ratio=null", budget) if "macs" in budget else (budget,)
    line = ("schedule=iterative", "schedule.count=3", f"penalty={penalty}")
    report = run(tmp_path / "run", *line, *given, *SHORT)
    assert list(report["phases"])[-3:] == ["sparse-3", "prune-3", "finetune-3"]
    kind, amounts = ("macs", [0.8, 0.6, 0.4]) if "macs" in budget else ("ratio", [0.2, 0.4, 0.6])
    for cut, amount in zip(report["cuts"], amounts, strict=True):
        assert cut["requested"] == {kind: pytest.approx(amount)}
        channel = 1 / 24 if kind == "ratio" else 0.2
        assert abs(cut["achieved"][kind] - amount) <= channel
        if kind == "macs":
            assert cut["achieved"]["macs"] <= amount * (1 + 1e-9)
        assert macs_kept(tmp_path / "run" / cut["phase"] / "network.safetensors") == pytest.approx(
            cut["achieved"]["macs"]
        )
    assert report["widths"]["features.0"][0] == 8, "widths are told from the dense network on"
    page = (tmp_path / "run" / "report.md").read_text()
    assert all(f"| {name} |" in page for name in ("prune", "prune-2", "prune-3"))


def test_a_network_that_slimmed_itself_is_not_cut_twice(tmp_path: Path) -> None:
    """With penalty=target the zeros are gone before the prune phase: the budget is the dense network's."""
    line = ("penalty=target", "sparse.epochs=4", "sparse.slim_every=3", "finetune.epochs=1")
    report = run(tmp_path / "run", *line)
    assert report["phases"]["sparse"]["slimmed"]
    assert abs(report["achieved"]["ratio"] - 0.5) <= 0.5 / 24
    assert report["rows"]["finetuned"]["channels"] == 12
    assert any("Nothing was removed" in note for note in report["notes"])


def test_floors_are_those_of_the_dense_network(tmp_path: Path) -> None:
    line = ("schedule=iterative", "schedule.count=2", "prune.ratio=0.7", "prune.max_layer_ratio=0.5")
    report = run(tmp_path / "run", *line, *SHORT)
    assert {tuple(pair) for name, pair in report["widths"].items() if name != "classifier"} == {(8, 4), (16, 8)}
    assert report["achieved"]["ratio"] == 0.5


def test_a_law_with_the_budget_has_the_cut_s_floors(tmp_path: Path) -> None:
    line = ("penalty=target", "sparse.epochs=4", "sparse.slim_every=3", "prune.ratio=0.5", "prune.max_layer_ratio=0.5")
    report = run(tmp_path / "run", *line, "phases=[sparse,prune]")
    assert {tuple(pair) for name, pair in report["widths"].items() if name != "classifier"} == {(8, 4), (16, 8)}


@pytest.mark.parametrize("penalty", ["l1", "target"])
def test_a_layer_s_own_ratio_is_due_pass_by_pass(penalty: str, tmp_path: Path) -> None:
    line = ("schedule=iterative", "schedule.count=2", "prune.ratio=0.5", "prune.overrides={features.0:{ratio:0.5}}")
    report = run(tmp_path / "run", *line, f"penalty={penalty}", "sparse.epochs=4", "finetune.epochs=1")
    first, last = (
        dict(slim.load(tmp_path / "run" / phase / "network.safetensors", dense()).named_modules())["features.0"]
        for phase in ("prune", "prune-2")
    )
    assert (first.out_channels, last.out_channels) == (6, 4)
    if penalty == "target":  # only what it took to zero went in the last cut
        assert sum(map(sum, report["removed"].values())) == 6
        for name, gone in report["removed"].items():
            assert all(gamma == 0 for gamma, goes in zip(report["gammas"][name], gone, strict=True) if goes)


def test_rewound_to_the_first_weights(tmp_path: Path) -> None:
    report = run(tmp_path / "run", "schedule=rewind", *SHORT)
    place = tmp_path / "run"
    thin = network(place / "prune" / "network.safetensors")
    plan = plan_of(thin)
    assert plan is not None
    assert same(thin.state_dict(), slim.rebuild(_start(place), plan).state_dict())
    assert "restarted" in report["rows"] and "recovered" not in report["rows"]
    assert any("before any training" in note for note in report["notes"])


def test_fresh_weights_are_others_and_the_same_each_time(tmp_path: Path) -> None:
    first, again = (run(tmp_path / name, "schedule=scratch", *SHORT) for name in ("a", "b"))
    assert timeless(first) == timeless(again)
    thin = network(tmp_path / "a" / "prune" / "network.safetensors")
    plan = plan_of(thin)
    assert plan is not None
    assert not same(thin.state_dict(), slim.rebuild(_start(tmp_path / "a"), plan).state_dict())
    assert {key: value.shape for key, value in thin.state_dict().items()} == {
        key: value.shape for key, value in slim.rebuild(dense(), plan).state_dict().items()
    }


@pytest.mark.parametrize("stop", [1, 2])
def test_early_weights_survive_a_stop(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewinding to the weights after an epoch, stopped before and after it, ends with the same bits."""
    line = ("schedule=rewind", "schedule.rewind_epoch=2", "sparse.epochs=3", "finetune.epochs=1")
    whole, report = tmp_path / "whole", run(tmp_path / "whole", *line)
    _stopped(tmp_path / "stopped", stop, line, monkeypatch)
    assert timeless(report) == timeless(json.loads((tmp_path / "stopped" / "report.json").read_text()))
    assert (whole / "model.safetensors").read_bytes() == (tmp_path / "stopped" / "model.safetensors").read_bytes()
    early, plan = network(whole / "early.safetensors"), plan_of(network(whole / "prune" / "network.safetensors"))
    assert plan is not None
    thin = network(whole / "prune" / "network.safetensors")
    assert same(thin.state_dict(), slim.rebuild(early, plan).state_dict())


def test_soft_cuts_resume_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("schedule=soft", "sparse.epochs=3", "criterion=taylor", "finetune.epochs=1")
    report = run(tmp_path / "whole", *line)
    _stopped(tmp_path / "stopped", 1, line, monkeypatch)
    assert timeless(report) == timeless(json.loads((tmp_path / "stopped" / "report.json").read_text()))
    plain = run(tmp_path / "plain", "phases=[sparse]", "sparse.epochs=3")
    assert plain["history"]["sparse"] != report["history"]["sparse"], "silencing changes what follows"
    assert plain["history"]["sparse"]["train_loss"][0] == report["history"]["sparse"]["train_loss"][0]


def test_a_stop_in_a_later_pass_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("schedule=iterative", "schedule.count=2", "penalty=target", "sparse.epochs=3", "sparse.slim_every=1",
            "finetune.epochs=1")  # fmt: skip
    report = run(tmp_path / "whole", *line)
    told: dict[str, int] = {}
    _stopped(tmp_path / "stopped", 6, line, monkeypatch, told)
    assert (tmp_path / "stopped" / "prune" / "network.safetensors").stat().st_mtime_ns == told["prune"]
    assert timeless(report) == timeless(json.loads((tmp_path / "stopped" / "report.json").read_text()))


def test_a_baseline_without_sparse_training_is_what_is_cut(tmp_path: Path) -> None:
    line = ("phases=[baseline,prune]", "criterion=l1", "recovery=none", "recovery.recalibrate_batches=0")
    run(tmp_path / "run", *line, "baseline.epochs=1")
    before = network(tmp_path / "run" / "baseline" / "network.safetensors")
    thin = network(tmp_path / "run" / "prune" / "network.safetensors")
    plan = plan_of(thin)
    assert plan is not None
    assert same(thin.state_dict(), slim.rebuild(before, plan).state_dict())


def _start(place: Path) -> torch.nn.Module:
    """The dense network that the run began with."""
    from slim.runs.prepare import prepare

    return prepare(json.loads((place / "state.json").read_text())["config"]).dense()


def _stopped(
    place: Path, stop: int, line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, told: dict[str, int] | None = None
) -> None:
    """Run, stopped after the ``stop``-th save of a checkpoint, and go on."""
    save, saves = Saver.save, iter(range(1, 1000))

    def stopping(self: Saver, trainer: Any) -> None:
        save(self, trainer)
        if next(saves) == stop:
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(Saver, "save", stopping)
    run(place, *line, code=143)
    monkeypatch.setattr(Saver, "save", save)
    if told is not None:
        told["prune"] = (place / "prune" / "network.safetensors").stat().st_mtime_ns
    assert train.main([f"resume={place}"]) == 0
