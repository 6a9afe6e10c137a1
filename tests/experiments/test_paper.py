"""The table of the papers: jobs cost the same, commands are complete, the smallest scale runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from experiments.paper import __main__ as program
from experiments.paper import figure, results, rival, table
from experiments.paper.jobs import SCALES, jobs
from slim.channels import count_macs
from slim.command import run
from slim.command.compose import compose
from slim.lightning import SparseTraining
from slim.runs.prepare import prepare
from tests.lightning.modules import Plain, fit
from tests.runs.tiny import TINY

ENVIRONMENT = {"processor": "a processor", "device": "cpu", "git": "0" * 12}


@pytest.mark.parametrize("scale", SCALES)
def test_every_way_gets_the_same_epochs(scale: str) -> None:
    own = {network.name: network.epochs or SCALES[scale].epochs for network in SCALES[scale].networks}
    for job in jobs(SCALES[scale]):
        keys = [item.partition("=")[0] for item in job.overrides]
        assert len(keys) == len(set(keys)), job.name
        epochs = [int(item.partition("=")[2]) for item in job.overrides if item.split("=")[0].endswith(".epochs")]
        assert sum(epochs) == own[job.name.split("/")[0]], job.name


def test_a_teacher_comes_first_and_is_a_dense_network_of_the_same_seed() -> None:
    for scale in SCALES.values():
        names = [job.name for job in jobs(scale)]
        assert len(names) == len(set(names))
        for job in jobs(scale):
            if job.needs is not None:
                assert names.index(job.needs) < names.index(job.name)
                assert job.needs.split("/")[-1] == job.name.split("/")[-1]


def test_a_folder_of_images_stands_in_for_cifar10_alone() -> None:
    for scale in ("core", "processor", "paper"):
        for job in jobs(SCALES[scale]):
            (own,) = [item for item in job.overrides if item.startswith("data=")]
            given = [item for item in program.command(job, Path("runs"), Path("photos")) if item.startswith("data=")]
            assert given == ["data=image_folder" if own == "data=cifar10" else own], job.name


def test_the_smallest_scale_runs_and_fills_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what the commands say, without the start of Python."""

    def here(line: list[str], **_: object) -> SimpleNamespace:
        assert line[1] == "train.py"
        return SimpleNamespace(returncode=run.main(line[2:]))

    monkeypatch.setattr(program, "subprocess", SimpleNamespace(run=here, DEVNULL=None))
    only = ["--only", "taught"]
    assert program.main(["--scale", "smoke", "--output", str(tmp_path), *only]) == 0
    found = results.collect(tmp_path, "smoke")
    lines = table.rows(found, "smoke")
    assert [line.split("|")[2].strip() for line in lines] == ["dense", "dense-taught", "paper-taught"]
    # Finished jobs are not run again; a page is filled between its marks.
    never = SimpleNamespace(run=lambda *_, **__: pytest.fail("a finished job ran again"), DEVNULL=None)
    monkeypatch.setattr(program, "subprocess", never)
    assert program.main(["--scale", "smoke", "--output", str(tmp_path), *only]) == 0
    page = tmp_path / "page.md"
    page.write_text(f"before {table.MARKS[0]} old {table.MARKS[1]} after")
    table.write(found, page)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after") and "old" not in text and lines[-1] in text


def test_distances_are_to_the_dense_network_of_the_same_seed(tmp_path: Path) -> None:
    network, rows = "narrow-vgg-c10", {"dense": {"metric": 0.0, "latency_ms_b64": 3.0}}
    cut = {"params": 1e6, "macs": 2e6, "latency_ms_b64": 2.0}
    for name, accuracy in {"dense/s0": 0.70, "dense/s1": 0.80, "macs-0.5/target/s0": 0.69, "macs-0.5/target/s1": 0.78,
                           "macs-0.5/target-taught/s1": 0.79}.items():  # fmt: skip
        own = rows | {"rebuilt": {"metric": 0.3}, "finetuned": {"metric": accuracy, **cut}}
        report = {"status": "finished", "rows": own, "seconds": 3.0, "environment": ENVIRONMENT}
        path = tmp_path / "core" / network / name / "report.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(report))
    found = results.collect(tmp_path, "core")
    # A dense network that is trained again elsewhere is no longer the one that these rows are measured by.
    found[f"core/{network}/dense/s0"]["accuracy"] = 0.10
    _, target, taught = table.rows(found, "core")
    assert (
        "| target | 2 | 30.00 ± 0.00 | 73.50 ± 6.36 | -1.50 ± 0.71 | 1.000 M | 2.0 M | 1.50 ± 0.00 | 3 | 0 |" in target
    )
    assert "| 79.00 | -1.00 |" in taught and taught.endswith("| 3 |")
    figure.draw(found, tmp_path / "paper.png")
    assert (tmp_path / "paper.png").stat().st_size > 10_000
    figure.draw({}, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


def test_a_rival_reaches_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    line = [item for item in TINY if not item.startswith("prune.")]
    report = rival.run([*line, "model=vgg", "prune.ratio=null", "prune.macs=0.5", "sparse.epochs=1"], tmp_path / "job")
    rows = report["rows"]
    assert rows["finetuned"]["macs"] <= 0.5 * rows["dense"]["macs"]
    assert rows["finetuned"]["latency_ms_b64"] > 0 and rows["dense"]["latency_ms_b64"] > 0
    assert json.loads((tmp_path / "job" / "report.json").read_text()) == report


def test_a_rival_takes_the_same_share_of_each_layer(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    line = [item for item in TINY if not item.startswith(("prune.", "model."))]
    shape = ["model=mlp", "model.hidden=[40,20]", "prune.ratio=0.8", "prune.strategy=layer", "sparse.epochs=1"]
    report = rival.run([*line, *shape], tmp_path / "job")
    widest = 64 * 8 + 8 * 4 + 4 * 10
    assert 0.7 * widest < report["rows"]["finetuned"]["macs"] <= widest


@pytest.mark.parametrize("cap", [0.7, 1.0])
def test_a_rival_leaves_of_every_layer_what_the_others_must(cap: float) -> None:
    pytest.importorskip("torch_pruning")
    line = [item for item in TINY if not item.startswith(("prune.", "model."))]
    shape = ["model=vgg", "model.widths=[8,M,8]", "prune.ratio=null", "prune.macs=0.25", f"prune.max_layer_ratio={cap}"]
    parts = prepare(compose([*line, *shape], SimpleNamespace(config_dir=None, config_name=None))[0])
    network = parts.network(parts.module("sparse"))
    first, second = (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    first.weight.data = torch.tensor([1.0, *(1e-3 * k for k in range(1, 8))])  # nearly all of this layer would go first
    second.weight.data = torch.linspace(0.9, 1.1, 8)
    dense = count_macs(network, parts.example)
    rival._cut(network, rival._pruner(network, parts), parts, dense)
    # A layer that has as few as it may have loses one more: the check of Torch-Pruning 1.6 is before a step.
    assert first.num_features == (2 if cap == 0.7 else 1) and count_macs(network, parts.example) <= 0.25 * dense


def test_a_rival_presses_as_hard_as_l1() -> None:
    for shrink in (0.3, None):
        pruner, module = SimpleNamespace(reg=1e-4, regularize=lambda network: None), Plain()
        ours = SparseTraining("l1", lam=1e-4, shrink=shrink)
        fit(module, rival.Regularization(pruner, module.net, shrink), ours)
        assert pruner.reg == pytest.approx(ours.law.lam)  # type: ignore[attr-defined]
        assert (pruner.reg == 1e-4) == (shrink is None)
