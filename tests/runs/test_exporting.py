"""The export phase: files that answer as the network does, or a run that fails; and the program beside them."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_leaves

import train
from slim import deploy
from slim.command.main import main
from slim.data.decode import read_image, resize_center_crop
from slim.deploy import predict, predict_boxes
from slim.deploy.onnx_file import write_onnx
from slim.report.html import run_page
from slim.runs import exporting
from slim.runs.checkpoint import Saver
from tests.runs.tiny import run

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright cats and dark dogs, larger than the network's images and not square."""
    folder, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        for low, kind in ((150, "cat"), (0, "dog")):
            place = folder / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(chance.integers(low, low + 100, (12, 18, 3), np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def exported(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("run") / "run"
    report = run(
        directory, "data=image_folder", f"data.dir={photos}", "data.limit_train=null", "data.batch_size=8",
        "phases=[sparse,prune,finetune,export]", "export.formats=[onnx,int8]", "export.max_loss=0.6",
        "finetune.epochs=4", "finetune.lr=0.05",
    )  # fmt: skip
    return directory, report


def test_the_report_has_every_rung(exported: Any) -> None:
    directory, report = exported
    files = report["export"]["files"]
    assert set(files) == {"onnx", "int8"}
    assert files["onnx"]["metric"] == files["onnx"]["reference"] and files["onnx"]["difference"] < 1e-3
    ladder = {row["name"]: row for row in report["export"]["ladder"]}
    assert list(ladder) == ["dense fp32 eager", "dense fp32", "dense int8", "thin fp32", "thin int8"]
    assert ladder["dense fp32 eager"]["metric"] == ladder["dense fp32"]["metric"] == report["rows"]["sparse"]["metric"]
    assert ladder["thin fp32"]["metric"] == report["rows"]["finetuned"]["metric"]
    assert ladder["thin fp32"]["bytes"] == (directory / "export" / "model.onnx").stat().st_size
    text = (directory / "report.md").read_text()
    assert "## Export" in text and "| thin int8 |" in text
    page = run_page(report)
    told = {cells[0]: cells[1:] for cells in rows_below("From dense fp32 to thin int8", page)}
    assert list(told) == list(ladder)
    for name, row in ladder.items():
        assert told[name][0] == f"{100 * row['metric']:.2f}%"
        assert (told[name][2], told[name][4]) == tuple(f"{row[f'latency_ms_b{batch}']:.3g}" for batch in (1, 64))
    rungs = rows_below("Export", page)
    assert [(cells[0], cells[1], cells[-1]) for cells in rungs] == [
        (name, row["file"], f"{100 * row['metric']:.2f}%") for name, row in files.items()
    ]


def rows_below(title: str, page: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    (body,) = re.findall(rf"<h2>{title}</h2>.*?<tbody>(.*?)</tbody>", page, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[1:]]


def test_predict_gives_the_predictions_of_the_network(exported: Any, photos: Path) -> None:
    directory, report = exported
    model = directory / "export" / "model.onnx"
    line = [sys.executable, str(directory / "export" / "predict.py"), str(photos / "test"), str(model)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 16 and all(0.5 <= float(share) <= 1 for _, _, share in rows)
    right = sum(Path(path).parent.name == name for path, name, _ in rows) / len(rows)
    assert right == pytest.approx(report["rows"]["finetuned"]["metric"], abs=1 / 16)


def test_predict_reads_gray_of_16_bits_as_training_does(exported: Any, photos: Path, tmp_path: Path) -> None:
    script = exported[0] / "export" / "predict.py"
    gray = Image.open(next((photos / "test").rglob("*.png"))).convert("L")
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    for form in ("png", "tiff"):
        gray.save(tmp_path / f"8.{form}"), wide.save(tmp_path / f"16.{form}")
        assert torch.equal(read_image(tmp_path / f"8.{form}", 3), read_image(tmp_path / f"16.{form}", 3))
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = {line.partition("\t")[2] for line in done.stdout.splitlines()}
    assert len(answers) == 1 and len(done.stdout.splitlines()) == 4


def test_predict_goes_on_after_a_damaged_image(exported: Any, photos: Path, tmp_path: Path) -> None:
    whole = next((photos / "test").rglob("*.png"))
    for name, content in (("a.png", whole.read_bytes()[:60]), ("b.png", b"no image"), ("c.png", whole.read_bytes())):
        (tmp_path / name).write_bytes(content)
    Image.new("L", (1, 1)).save(tmp_path / "d.bmp")
    content = (tmp_path / "d.bmp").read_bytes()
    (tmp_path / "d.bmp").write_bytes(content[:18] + (2 * (1 << 16).to_bytes(4, "little")) + content[26:])  # its size
    line = [sys.executable, str(exported[0] / "export" / "predict.py"), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert [Path(said.partition("\t")[0]).name for said in done.stdout.splitlines()] == ["c.png"]
    assert [Path(said.partition(": ")[0]).name for said in done.stderr.splitlines()] == ["a.png", "b.png", "d.bmp"]


def test_predict_takes_one_image_and_says_what_it_takes(exported: Any, photos: Path) -> None:
    script, image = str(exported[0] / "export" / "predict.py"), str(next((photos / "test").rglob("*.png")))
    done = subprocess.run([sys.executable, script, image], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"{image}\t") and done.stdout.count("\n") == 1
    for line in ([], ["nowhere"], [image, "model.onnx", "more"]):
        done = subprocess.run([sys.executable, script, *line], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("Classes of images: python predict.py"), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", [predict, predict_boxes])
def test_predict_tells_of_a_file_that_does_not_say_how_it_reads_images(script: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    program = deploy.capture(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 8, 8))
    write_onnx(program, tmp_path / "bare.onnx", metadata={"size": 8, "classes": ["a", "b"]})
    model = onnx.load(tmp_path / "bare.onnx")
    model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")  # as ONNX Runtime's quantizer notes, no JSON
    onnx.save(model, tmp_path / "bare.onnx")
    line = [sys.executable, script.__file__, str(tmp_path / "one.png"), str(tmp_path / "bare.onnx")]
    done = subprocess.run(line, capture_output=True, text=True)
    lacks = "mean, std" if script is predict else "choice"
    assert done.returncode == 2 and done.stderr.endswith(f"does not say how it reads images: it lacks {lacks}.\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("shape", [(31, 44), (52, 13), (17, 17), (8, 61), (20, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_predict_scales_and_cuts_images_as_training_does(tmp_path: Path, shape: Any, channels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    trained = resize_center_crop(read_image(tmp_path / "noise.png", channels), 20).permute(1, 2, 0).numpy()
    read = predict.read(tmp_path / "noise.png", 20, channels)
    assert read.shape == trained.shape and abs(read.astype(int) - trained).max() <= 4  # each rounds in its own way


def test_a_run_is_exported_wherever_it_lies(exported: Any, tmp_path: Path) -> None:
    there = tmp_path / "runs of André, (1)=a"
    shutil.copytree(exported[0], there, ignore=shutil.ignore_patterns("export"))
    assert main(["export", str(there), "--formats", "onnx"]) == 0
    assert (there / "export" / "predict.py").is_file()


def test_a_run_decides_what_it_is_exported_with(exported: Any, photos: Path, capfd: Any) -> None:
    assert main(["export", str(exported[0]), "--images", str(photos), "--mean", "0.5"]) == 2
    assert "Got --images, --mean." in capfd.readouterr().err


def test_a_run_is_exported_with_its_own_options_but_for_those_given(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[deploy.Options] = []
    actual = exporting._export

    def spy(parts: Any, module: Any, folder: Path, wanted: deploy.Options, comparison: Any) -> Any:
        seen.append(wanted)
        return actual(parts, module, folder, wanted, comparison)

    monkeypatch.setattr(exporting, "_export", spy)
    line = ["export", str(exported[0]), "--formats", "onnx", "-o", str(tmp_path / "files")]
    assert main(line) == 0 and main([*line, "--max-loss", "0.5"]) == 0
    assert [wanted.max_loss for wanted in seen] == [0.6, 0.5]


@pytest.mark.parametrize("script", [predict, predict_boxes])
def test_predict_needs_three_packages(script: Any) -> None:
    tree = ast.parse(Path(script.__file__).read_text())
    names = {a.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.parametrize("form", ["onnx", "int8"])
def test_an_opset_is_tried_before_the_training(form: str, tmp_path: Path, capfd: Any) -> None:
    line = ["phases=[sparse,prune,export]", f"export.formats=[{form}]", "export.opset=17"]
    run(tmp_path / "run", *line, code=2)
    assert "Got opset=17, it wrote" in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_a_file_that_differs_ends_the_run(
    exported: Any, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The phase alone, on what the run left."""
    from slim.deploy.onnx_file import OnnxNetwork

    forward = OnnxNetwork.forward

    def off(self: OnnxNetwork, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs) + 1

    line = ("data=image_folder", f"data.dir={photos}", "data.limit_train=null", "data.batch_size=8", "phases=[export]",
            f"checkpoint={exported[0] / 'model.safetensors'}", "export.formats=[onnx]")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxNetwork, "forward", off)
        assert run(tmp_path / "run", *line, code=1) == {}
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("onnx must compute what the network does. Got difference=")
    assert not [path for path in (tmp_path / "run" / "export").iterdir()]
    resume, unfinished = f"resume={tmp_path / 'run'}", tmp_path / "run" / "export" / ".export-of-one-that-was-killed"
    unfinished.mkdir()
    (unfinished / "model.onnx").write_bytes(b"half")
    assert train.main([resume, "export.max_difference=0.01"]) == 0, "as the line advises; nothing else is done again"
    assert not unfinished.exists()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row in report["export"]["ladder"]] == ["thin fp32 eager", "thin fp32"]
    assert json.loads((tmp_path / "run" / "state.json").read_text())["finished"]
    capfd.readouterr()
    assert train.main([resume, "export.max_difference=0.1"]) == 2, "its files are there"
    assert "export.max_difference (0.01 -> 0.1)" in capfd.readouterr().err


def test_both_networks_of_the_ladder_are_calibrated_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, seen = deploy.export, []

    def watched(network: Any, example: Any, folder: Path, wanted: deploy.Options, **given: Any) -> deploy.Exported:
        seen.append((wanted.calibration, wanted.reduce_range))
        return export(network, example, folder, wanted, **given)

    monkeypatch.setattr(deploy, "export", watched)
    line = ("sparse.epochs=1", "phases=[sparse,prune,export]", "export.formats=[int8]", "export.max_loss=1")
    run(tmp_path / "run", *line, "export.calibration=percentile", "export.reduce_range=true")
    assert seen == [("percentile", True)] * 2


def test_rounding_is_measured_for_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = deploy.Rounding(4, "a runtime", "a layer", {"1": 2.0, "4": 1.0})
    monkeypatch.setattr(deploy, "measure_rounding", lambda network, example: found)
    report = run(tmp_path / "run", "sparse.epochs=1", "phases=[sparse,prune]", "prune.round_to=auto")
    assert all(after % 4 == 0 for name, (_, after) in report["widths"].items() if "features" in name)
    assert any("round_to=auto is 4" in note for note in report["notes"])


def test_a_law_that_selects_rounds_as_the_cut_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the run goes on where another multiple is measured."""
    measured = [deploy.Rounding(multiple, "a runtime", "a layer", {"1": 2.0, "4": 1.0}) for multiple in (4, 8)]
    monkeypatch.setattr(deploy, "measure_rounding", lambda network, example: measured[0])
    line = ("penalty=target", "phases=[sparse,prune]", "prune.round_to=auto")
    whole = run(tmp_path / "whole", *line)
    assert sum(after % 4 == 0 and after < before for before, after in whole["widths"].values()) == 2
    assert whole["rows"]["masked"]["metric"] == whole["rows"]["sparse"]["metric"], "what went was at zero"
    save = Saver.save

    def stopped(self: Saver, trainer: Any) -> None:
        save(self, trainer)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "save", stopped)
        run(tmp_path / "killed", *line, code=143)
    measured.pop(0)
    assert train.main([f"resume={tmp_path / 'killed'}"]) == 0
    assert json.loads((tmp_path / "killed" / "report.json").read_text())["plan_hash"] == whole["plan_hash"]


class Sloped(pl.LightningModule):
    """Its step calls its network, of two inputs, as it is told to."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.net, self.call = Slope(), call

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.call(self.net, *batch)


class Slope(nn.Module):
    def forward(self, x: Any, t: Any) -> Any:
        return 2 * x + t


class File(nn.Module):
    """As files do, it takes tensors in the order of the example."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x, t = tree_leaves((args, kwargs))
        return 2 * x + t


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "call", [lambda net, x, t: net(x, t), lambda net, x, t: net(x, t=t), lambda net, x, t: net(t=t, x=x)]
)
def test_a_file_gets_what_a_step_gives_its_network_however_it_calls(call: Any, named: bool) -> None:
    batch, module, zero = (torch.ones(2, 3), torch.zeros(2, 3)), Sloped(call), torch.zeros(1, 3)
    parts: Any = SimpleNamespace(
        network=lambda module: module.net, example={"x": zero, "t": zero} if named else (zero, zero)
    )
    (given,) = exporting._inputs(parts, module, [batch], 1)
    assert float(deploy.call(File(), given).sum()) == 6
    with exporting.instead(module.net, File(), parts.example):
        assert torch.equal(module.training_step(batch, 0), torch.full((2, 3), 2.0))
    assert "forward" not in vars(module.net)


@pytest.mark.parametrize(
    ("phases", "first", "rungs"),
    [
        (["baseline", "sparse", "export"], "sparse", ("sparse", "sparse")),
        (["start", "finetune", "export"], None, ("finetune", "finetune")),
        (["start", "export"], None, ("start", "start")),
        (["baseline", "sparse", "prune", "finetune", "prune-2", "export"], "sparse", ("baseline", "prune-2")),
        (["start", "prune", "export"], None, ("start", "prune")),
        (["sparse", "prune", "finetune", "export"], "sparse", ("sparse", "finetune")),
    ],
)
def test_the_ladder_is_of_what_was_exported(phases: Any, first: Any, rungs: Any, tmp_path: Path) -> None:
    parts: Any = SimpleNamespace(config=SimpleNamespace(first=first))
    state: Any = SimpleNamespace(phases=dict.fromkeys(phases))
    found = exporting._before_cut(parts, tmp_path, state), exporting._last(tmp_path, state)
    assert tuple(path and path.parent.name for path in found) == rungs
