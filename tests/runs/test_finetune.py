"""Fine-tuning with a teacher, and with the learning rates of the training before the cut."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from experiments.chaos.harness import curves
from slim.runs import builders, teachers
from slim.runs.checkpoint import Saver
from slim.runs.config import read
from slim.runs.record import timeless
from slim.runs.signals import Interrupted
from tests.runs.tiny import run

HEARD = ("finetune.distill.teacher=sparse", "finetune.distill.temperature=2", "finetune.distill.weight=0.7")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_a_weight_of_zero_is_plain_training(tmp_path: Path) -> None:
    run(tmp_path / "plain")
    run(tmp_path / "zero", HEARD[0], "finetune.distill.weight=0")
    plain, zero = weights(tmp_path / "plain"), weights(tmp_path / "zero")
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert "2_loss/teacher" not in curves(tmp_path / "zero" / "finetune")


def test_a_teacher_changes_the_network_and_its_loss_is_logged(tmp_path: Path) -> None:
    run(tmp_path, *HEARD, "phases=[baseline,sparse,prune,finetune]")
    heard = [value for _, value in curves(tmp_path / "finetune")["2_loss/teacher"]]
    assert len(heard) == 2
    assert all(value > 0 for value in heard)
    body = torch.load(tmp_path / "finetune" / "last.ckpt", weights_only=True)
    thin = sum(value.numel() for value in weights(tmp_path).values() if value.is_floating_point())
    held = sum(value.numel() for value in body["state_dict"].values() if value.is_floating_point())
    assert held == thin, "no teacher in the checkpoint"


def test_a_resumed_student_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher comes from a file, which is gone when the run goes on."""
    first = tmp_path / "first"
    run(first, "phases=[baseline]", "baseline.epochs=1")
    line = ("phases=[prune,finetune]", f"checkpoint={first / 'model.safetensors'}", "trainer.checkpoint_every=1")
    line = (*line, f"finetune.distill.teacher={first / 'model.safetensors'}")
    run(tmp_path / "whole", *line)
    save, saves = Saver.save, iter(range(1, 1000))

    def stopping(self: Saver, trainer: object) -> None:
        save(self, trainer)  # type: ignore[arg-type]
        if next(saves) == 3:  # of four in the first epoch
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(Saver, "save", stopping)
    run(tmp_path / "stopped", *line, code=143)
    monkeypatch.setattr(Saver, "save", save)
    (first / "model.safetensors").unlink()
    assert train.main([f"resume={tmp_path / 'stopped'}"]) == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "stopped")]
    assert timeless(reports[0]) == timeless(reports[1])
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "whole").values(),
                                                 weights(tmp_path / "stopped").values(), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("phases", "number", "told", "found"),
    [
        (("sparse", "prune", "finetune"), 0, "sparse", "sparse"),
        (("sparse", "prune", "finetune"), 2, "sparse", "sparse-3"),
        (("baseline", "prune", "finetune"), 0, "sparse", "baseline"),
        (("prune", "finetune"), 0, "sparse", "start"),
        (("prune", "finetune"), 1, "sparse", "finetune"),
        (("prune", "finetune"), 2, "sparse", "finetune-2"),
        (("baseline", "sparse", "prune", "finetune"), 1, "dense", "baseline"),
        (("prune", "finetune"), 1, "dense", "start"),
        (("sparse", "prune", "finetune"), 1, "net.safetensors", "finetune-teacher.safetensors"),
    ],
)
def test_who_teaches(phases: tuple[str, ...], number: int, told: str, found: str) -> None:
    assert teachers.source(_settings(phases, told), "finetune", number) == found


def _settings(phases: tuple[str, ...], told: str) -> Any:
    from types import SimpleNamespace as Bag

    first = next((phase for phase in ("sparse", "baseline") if phase in phases), None)
    return Bag(phases=phases, first=first, teachers={"finetune": Bag(teacher=told, weight=0.5)})


def test_sparse_training_has_a_teacher_of_its_own(tmp_path: Path) -> None:
    """Only the phase that is told listens; the dense network is the baseline's, also when channels leave meanwhile."""
    four, law = "phases=[baseline,sparse,prune,finetune]", ("penalty=target", "sparse.slim_every=1", "sparse.epochs=2")
    run(tmp_path / "alone", four, *law)
    report = run(tmp_path / "taught", four, *law, "sparse.distill.teacher=dense")
    heard = [value for _, value in curves(tmp_path / "taught" / "sparse")["2_loss/teacher"]]
    assert len(heard) == 2
    assert all(value > 0 for value in heard)
    assert "2_loss/teacher" not in curves(tmp_path / "taught" / "finetune")
    assert report["phases"]["sparse"]["slimmed"], "channels left while the teacher spoke"
    alone, taught = (
        torch.load(tmp_path / name / "sparse" / "last.ckpt", weights_only=True) for name in ("alone", "taught")
    )
    assert taught["state_dict"].keys() == alone["state_dict"].keys(), "no teacher in the checkpoint"
    pairs = [(alone["state_dict"][key], value) for key, value in taught["state_dict"].items()]
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["sparse", "finetune"])
def test_a_file_teaches_the_phase_that_names_it(kind: str, tmp_path: Path) -> None:
    run(tmp_path / "first", "phases=[baseline]", "baseline.epochs=1")
    run(tmp_path / "run", f"{kind}.distill.teacher={tmp_path / 'first'}")
    found = sorted(path.name for path in (tmp_path / "run").glob("*-teacher.safetensors"))
    assert found == [f"{kind}-teacher.safetensors"]
    assert {phase for phase in ("sparse", "finetune") if "2_loss/teacher" in curves(tmp_path / "run" / phase)} == {kind}


def test_a_run_killed_before_its_teacher_was_kept_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "first", "phases=[baseline]", "baseline.epochs=1")
    keep = teachers.keep

    def killed(*_: Any) -> None:
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(teachers, "keep", killed)
    run(tmp_path / "run", f"finetune.distill.teacher={tmp_path / 'first'}", code=143)
    monkeypatch.setattr(teachers, "keep", keep)
    assert train.main([f"resume={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "finetune-teacher.safetensors").is_file()


SCHEDULERS = ("step", "cosine", "constant", "one_cycle")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_can_be_replayed(name: str) -> None:
    """What is summed up beforehand is what an optimizer then does, warm-up included."""
    from tests.runs.test_configs import composed

    config = read(composed(f"scheduler={name}", "scheduler.warmup=0.1", "sparse.epochs=4", "sparse.lr=0.3"))
    rates = builders.learning_rates(config, "sparse", 30)
    made = builders.optimizer(config, [torch.nn.Parameter(torch.zeros(1))], 0.3)
    scheduler = builders.scheduler(config, made, 120)["scheduler"]
    followed = []
    for _ in range(120):
        followed.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step() if len(followed) < 120 else None
    assert rates == followed
    assert rates[0] < max(rates) / 5, "it warms up"


def test_rewinding_replays_the_end_of_the_sparse_phase(tmp_path: Path) -> None:
    """Its own epochs and rate do not count."""
    line = ("sparse.epochs=4", "finetune.lr_rewind=3", "finetune.epochs=1", "finetune.lr=7.0", "scheduler=cosine")
    report = run(tmp_path, *line, "phases=[sparse,prune,finetune]")
    assert report["phases"]["finetune"]["epochs"] == 3
    per_epoch = report["phases"]["finetune"]["steps"] // 3
    state = torch.load(tmp_path / "finetune" / "last.ckpt", weights_only=True)
    config = read(json.loads((tmp_path / "state.json").read_text())["config"])
    rates = builders.learning_rates(config, "sparse", per_epoch)
    # Where the schedule stands after the last step: at the end of the sparse phase's.
    group = state["optimizer_states"][0]["param_groups"][0]
    assert math.isclose(group["lr"], rates[-1], rel_tol=1e-9)
    assert group["initial_lr"] == builders.base_rate(config, "sparse")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("finetune.distill.teacher=dense",), "phases=[baseline,sparse,prune,finetune]"),
        (("finetune.distill.teacher=sparse", "phases=[sparse,finetune]"), "Add prune"),
        (("finetune.distill.teacher=nowhere.safetensors",), "finetune.distill.teacher"),
        (("finetune.distill.teacher=3",), "must be text"),
        (("sparse.distill.teacher=dense",), "Got sparse.distill.teacher=dense"),
        (("sparse.distill.teacher=sparse",), "Set sparse.distill.teacher=dense"),
        (("sparse.distill.teacher=nowhere.safetensors",), "sparse.distill.teacher"),
        (("finetune.distill.temperature=0",), "Set finetune.distill.temperature above 0"),
        (("finetune.distill.weight=1.5",), "Set finetune.distill.weight"),
        (
            (
                "+experiment=detection_slim",
                "model.name=ssdlite_resnet8",
                "data.scenes=16",
                "data.val_scenes=2",
                "phases=[baseline,sparse,prune]",
                "sparse.distill.teacher=dense",
            ),
            "must give logits of one shape. Got None",
        ),
        (("finetune.lr_rewind=0",), "Set finetune.lr_rewind to 1 or more"),
        (("finetune.lr_rewind=9",), "Lower finetune.lr_rewind"),
    ],
)
def test_bad_values_cost_one_line(
    line: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", *line, code=2)
    told = capfd.readouterr().err.strip().splitlines()
    assert said in told[-1]
    assert not (tmp_path / "run").exists()
