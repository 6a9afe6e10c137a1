"""A run from its first phase to its report."""

from __future__ import annotations

import gc
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slim
import train
from slim.channels import Plan, plan_of
from slim.models import vgg
from slim.report import environment
from slim.runs import pruning
from slim.runs.record import timeless
from tests.report.board import SHOWN, TABS, hparams, tensorboard
from tests.report.browser import CHROMIUM, browser
from tests.runs.tiny import FOUR_STEPS, run

PHASES = "phases=[baseline,sparse,prune,finetune]"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One run of all four phases, and its report."""
    place = tmp_path_factory.mktemp("runs") / "one"
    return place, run(place, PHASES, "figures=true", "seed=0")


def dense() -> torch.nn.Module:
    return vgg(widths=[8, "M", 16], num_classes=10, in_channels=1)


def test_run_directory(done: tuple[Path, dict[str, Any]]) -> None:
    place, _ = done
    for name in (
        ".hydra/config.yaml", "state.json", "prune/plan.json", "model.safetensors", "report.md", "report.json",
        "report.html", "sparse/last.ckpt", "finetune/last.ckpt", "baseline/network.safetensors",
    ):  # fmt: skip
        assert (place / name).is_file(), name
    for phase in ("baseline", "sparse", "finetune"):
        assert list((place / phase).glob("events.out.tfevents.*"))
    assert len(list((place / "figures").glob("*.png"))) == 5
    assert (place / "report.md").read_text().count("figures/") == 5
    assert not (place / "lock").exists()
    assert not list(place.rglob(".*.part"))


def test_without_figures(tmp_path: Path) -> None:
    run(tmp_path / "run", "phases=[sparse,prune]")
    assert (
        not list(tmp_path.rglob("*.png"))
        and not list(tmp_path.rglob("*.html"))
        and "figures/" not in (tmp_path / "run" / "report.md").read_text()
    )


def test_report(done: tuple[Path, dict[str, Any]]) -> None:
    _, report = done
    rows = report["rows"]
    assert list(rows) == ["dense", "sparse", "masked", "rebuilt", "recovered", "finetuned"]
    assert rows["masked"]["metric"] == rows["rebuilt"]["metric"]
    assert rows["dense"]["macs"] == rows["sparse"]["macs"] == rows["masked"]["macs"] > rows["finetuned"]["macs"]
    assert report["phases"]["sparse"]["epochs"] == 2
    assert len(report["history"]["sparse"]["val_accuracy"]) == 2
    assert abs(report["achieved"]["ratio"] - 0.5) < 0.05
    told = report["environment"]
    assert told["versions"]["torch"] == metadata.version("torch")
    assert told["python"] == platform.python_version() and told["processor"]
    revision = environment.revision()
    assert told["git"] == revision and (revision is None or len(revision.rstrip("+")) == 12)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_has_one_axis_and_reading_order(done: tuple[Path, dict[str, Any]]) -> None:
    """A fine-tune's steps go on where sparse training stopped; the baseline is a run of its own."""
    place, report = done
    curves = {phase: events(place / phase) for phase in ("baseline", "sparse", "finetune")}
    steps = {name: [event.step for event in found.Scalars("1_accuracy/val")] for name, found in curves.items()}
    length = report["phases"]["sparse"]["steps"]
    assert steps["sparse"] == steps["baseline"] and steps["sparse"][-1] == length - 1
    assert steps["finetune"] == [length + step for step in steps["sparse"]]
    assert next(event.step for event in curves["finetune"].Histograms("gamma/all")) == length
    assert [event.step for event in events(place / "prune").Images("cut/gamma_ridges")] == [length]
    tags = curves["sparse"].Tags()["scalars"]
    assert sorted(tags)[:2] == ["1_accuracy/train", "1_accuracy/val"], "what TensorBoard unfolds"
    assert {"3_sparsity/zero", "3_sparsity/target", "3_sparsity/budget_ratio", "5_schedule/lam"} <= set(tags)
    assert {event.value for event in curves["sparse"].Scalars("3_sparsity/budget_ratio")} == {0.5}


def test_tensorboard_tells_of_the_whole_run(done: tuple[Path, dict[str, Any]]) -> None:
    place, report = done
    found = events(place / "overview")
    tags = found.Tags()
    assert "custom_scalars__config__" in tags["tensors"]
    assert {f"overview/{name}/text_summary" for name in ("1_command", "2_networks", "3_plan")} <= set(tags["tensors"])
    assert report["command"] in found.Tensors("overview/1_command/text_summary")[0].tensor_proto.string_val[0].decode()
    row = hparams(place / "overview")
    assert row["experiment"] == "vgg_slim" and row["prune.ratio"] == 0.5
    assert "seed" not in row, "typed, but the default"
    assert found.Scalars("result/accuracy")[0].value == pytest.approx(report["rows"]["finetuned"]["metric"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_every_tab_of_tensorboard_shows_something(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """SLIM_SCREENSHOTS=<folder> keeps the pictures."""
    kept = Path(os.environ.get("SLIM_SCREENSHOTS", tmp_path))
    place, _ = done
    with tensorboard(place, tmp_path / "told") as address, browser(tmp_path / "profile") as page:
        page.size(1600, 1000)
        page.open(f"{address}#text")
        for tab, text in TABS.items():
            page.value(f"location.hash = '#{tab}'")
            page.until(f"{SHOWN.strip()}.includes({text!r})")
            assert page.picture(kept / f"{tab}.png").stat().st_size > 10_000


def test_artifact_is_the_fine_tuned_network(done: tuple[Path, dict[str, Any]]) -> None:
    place, report = done
    network = slim.load(place / "model.safetensors", dense())
    plan = plan_of(network)
    assert plan is not None
    written = Plan.from_json((place / "prune" / "plan.json").read_text())
    assert written.hash == report["plan_hash"]
    assert {key: keep.kept.tolist() for key, keep in plan.axes.items()} == {
        key: keep.kept.tolist() for key, keep in written.axes.items()
    }
    graph = slim.trace(network, torch.zeros(1, 1, 8, 8))
    assert graph.params() == report["rows"]["finetuned"]["params"]
    assert report["depth"] == [slim.trace(dense(), torch.zeros(1, 1, 8, 8)).depth(), graph.depth()]
    assert f"depth: {report['depth'][0]} -> {graph.depth()} convolutions" in (place / "report.md").read_text()


def test_baseline_leaves_sparse_training_alone(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The dense control is a run of its own: with and without it the rest is the same, bit for bit."""
    _, report = done
    alone = run(tmp_path / "alone")
    assert timeless(alone["rows"]["finetuned"]) == timeless(report["rows"]["finetuned"])
    assert alone["history"]["sparse"] == report["history"]["sparse"]


def test_from_a_checkpoint(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Prune and fine-tune from the sparse network come to what the whole run came to."""
    place, report = done
    later = run(tmp_path / "later", "phases=[prune,finetune]", f"checkpoint={place}/sparse/network.safetensors")
    assert later["plan_hash"] == report["plan_hash"]
    assert timeless(later["rows"]["finetuned"]) == timeless(report["rows"]["finetuned"])
    fitted = ("recovery=least_squares", "recovery.least_squares_batches=2")
    from_ckpt = run(tmp_path / "ckpt", "phases=[prune]", f"checkpoint={place}/sparse/last.ckpt", *fitted)
    assert from_ckpt["plan_hash"] == report["plan_hash"]
    steps = {step["name"]: step for step in from_ckpt["recovery"]}
    assert list(steps) == ["absorb", "least_squares", "recalibrate"]
    assert "layers gained" in steps["least_squares"]["reason"] and steps["least_squares"]["after"] is not None


@pytest.mark.parametrize("asked", ["phases=[baseline,sparse,prune]", "schedule=rewind"])
def test_a_thin_network_is_no_dense_one_to_begin_with(
    asked: str, done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The report would have called it the dense one; a rewound network would have nothing to go back to."""
    run(tmp_path / "run", asked, f"checkpoint={done[0]}", code=2)
    assert not (tmp_path / "run").exists()


def test_finished_runs_are_not_run_again(done: tuple[Path, dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    place, _ = done
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert train.main([f"resume={place}"]) == 0
    assert "finished before" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before


def test_evaluate(done: tuple[Path, dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    import evaluate

    place, report = done
    assert evaluate.main([str(place)]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["accuracy"] == report["rows"]["finetuned"]["metric"]
    assert told["macs"] == report["rows"]["finetuned"]["macs"]
    assert evaluate.main([str(place / "sparse" / "last.ckpt"), "data.limit_test=32"]) == 0
    assert json.loads(capfd.readouterr().out)["macs"] == report["rows"]["sparse"]["macs"]


def test_validation_every_other_epoch(tmp_path: Path) -> None:
    """Figures of an epoch stand at that epoch."""
    report = run(
        tmp_path,
        "phases=[baseline]",
        "baseline.epochs=4",
        "trainer.options={check_val_every_n_epoch: 2}",
        "figures=true",
    )
    curves, found = report["history"]["baseline"], report["phases"]["baseline"]
    assert [value is None for value in curves["val_accuracy"]] == [True, False, False, False]
    assert None not in curves["train_loss"] and len(curves["train_loss"]) == 4
    assert found["val"] == curves["val_accuracy"][3]
    assert found["best_epoch"] in (2, 4)
    assert curves["val_accuracy"][found["best_epoch"] - 1] == found["best_val"]


def test_a_phase_that_ended_early_has_the_epochs_that_were_trained(tmp_path: Path) -> None:
    report = run(tmp_path, "phases=[baseline]", "baseline.epochs=9", "trainer.options={max_steps: 3}")
    phase = report["phases"]["baseline"]
    assert (phase["epochs"], phase["steps"]) == (2, 3) == (len(report["history"]["baseline"]["train_loss"]), 3)


@pytest.mark.parametrize("limit", ["trainer.limit_batches=3", "trainer.options={limit_train_batches: 0.75}"])
def test_every_epoch_has_as_many_batches_as_the_limit(limit: str, tmp_path: Path) -> None:
    report = run(tmp_path, "phases=[baseline]", FOUR_STEPS, "baseline.epochs=3", limit)
    assert report["phases"]["baseline"]["steps"] == 9


def test_same_seed_same_bits(tmp_path: Path) -> None:
    first, again = run(tmp_path / "a", "seed=0"), run(tmp_path / "b", "seed=0")
    other = run(tmp_path / "c", "seed=1")
    assert timeless(first) == timeless(again)
    assert first["history"] != other["history"]


def test_the_prune_phase_holds_one_dense_and_two_thin_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a network is evaluated: the dense one, a thin one that recovery tries, and its twin that is measured."""
    measured, alive = pruning.evaluate, []
    gc.collect()
    gc.freeze()  # what there is already is in no list of objects from here on

    def counted(*args: Any) -> float:
        gc.collect()
        own = [p for p in gc.get_objects() if type(p) is nn.Parameter and not p.is_meta]
        alive.append(sum({p.data_ptr(): p.numel() for p in own}.values()))
        return measured(*args)

    monkeypatch.setattr(pruning, "evaluate", counted)
    report = run(tmp_path / "run", "phases=[sparse,prune]", "prune.ratio=0.5")
    assert len(alive) >= 4, "sparse, masked, rebuilt, recovered"
    assert max(alive) <= report["rows"]["sparse"]["params"] + 2 * report["rows"]["rebuilt"]["params"]
