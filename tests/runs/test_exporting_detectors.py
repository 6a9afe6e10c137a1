"""A detection run's files: all boxes, the metric by them, and the program that chooses among them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import slim
from slim.command.main import main
from slim.deploy.predict_boxes import choose, overlap, read
from tests.runs.tiny import run

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# torch's advice on a call inside torchvision's anchors.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid.*")
SIZE = 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("run") / "run"
    report = run(
        directory, "+experiment=detection_slim", f"data.image_size={SIZE}", "data.scenes=16", "data.val_scenes=8",
        "data.test_scenes=8", "data.batch_size=8", "model.name=ssdlite_resnet8", "+model.score_thresh=0.01",
        "sparse.epochs=1", "finetune.epochs=1", "phases=[sparse,prune,finetune,export]", "export.formats=[onnx,int8]",
        "export.max_loss=1",
    )  # fmt: skip
    return directory, report


def test_a_detector_is_compared_by_its_metric(exported: Any) -> None:
    _, report = exported
    files = report["export"]["files"]
    assert set(files) == {"onnx", "int8"} and files["onnx"]["difference"] < 1e-3
    assert files["onnx"]["metric"] == pytest.approx(files["onnx"]["reference"], abs=1e-3)
    ladder = {row["name"]: row for row in report["export"]["ladder"]}
    assert list(ladder) == ["dense fp32 eager", "dense fp32", "dense int8", "thin fp32", "thin int8"]
    assert ladder["thin fp32"]["metric"] == pytest.approx(report["rows"]["finetuned"]["metric"], abs=1e-3)
    assert ladder["thin fp32"]["bytes"] < ladder["dense fp32"]["bytes"]


def test_predict_gives_the_boxes_of_the_detector(exported: Any, tmp_path: Path) -> None:
    directory, _ = exported
    chance = np.random.default_rng(0)
    for number, shape in enumerate([(SIZE, SIZE), (70, 50)]):
        Image.fromarray(chance.integers(0, 255, (*shape, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    line = [
        sys.executable,
        str(directory / "export" / "predict.py"),
        str(tmp_path),
        str(directory / "export/model.onnx"),
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "damaged.png" in done.stderr, done.stderr
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    detector = slim.load(directory / "model.safetensors").eval()
    for number, shape in enumerate([(SIZE, SIZE), (70, 50)]):
        path = tmp_path / f"{number}.png"
        with torch.no_grad():
            expected = detector([torch.from_numpy(read(path, [SIZE, SIZE])[0][0])])[0]
        mine = [row for row in rows if row[0] == str(path)]
        assert len(mine) == len(expected["labels"]) > 0
        scale = torch.tensor([shape[1], shape[0], shape[1], shape[0]]) / SIZE
        for (_, name, score, corners), label, wanted, box in zip(
            mine, expected["labels"], expected["scores"], expected["boxes"] * scale, strict=True
        ):
            assert name == str(int(label) - 1) and float(score) == pytest.approx(float(wanted), abs=1e-3)
            assert [float(value) for value in corners.split()] == pytest.approx(box.tolist(), abs=0.1)


@pytest.mark.parametrize("levels", [None, [6, 3, 3]])
def test_both_choices_are_the_same(levels: Any) -> None:
    """The program's in NumPy, and the one of the metric."""
    from slim.tasks import AllBoxes

    choice = {
        "score_thresh": 0.3, "nms_thresh": 0.4, "detections_per_img": 6, "topk_candidates": 4, "levels": levels,
        "first_label": 1 if levels is None else 0,
    }  # fmt: skip
    torch.manual_seed(0)
    whole = AllBoxes.__new__(AllBoxes)
    torch.nn.Module.__init__(whole)
    whole.choice = choice
    for _ in range(20):
        scores, corner, side = torch.rand(1, 12, 3), 0.5 * torch.rand(1, 12, 2), 0.5 * torch.rand(1, 12, 2)
        boxes = torch.cat([corner, corner + side], -1)
        (expected,) = whole.detections(scores, boxes, (1, 1))
        found = choose(scores[0].numpy(), boxes[0].numpy(), choice)
        assert [label for _, label, _ in found] == expected["labels"].tolist()
        assert [score for score, _, _ in found] == pytest.approx(expected["scores"].tolist())
        assert np.array_equal(np.stack([box for _, _, box in found]), expected["boxes"].numpy())


def test_overlap_is_intersection_over_union() -> None:
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 0, 0]], "f4")
    assert overlap(np.array([0, 0, 2, 2], "f4"), others).tolist() == pytest.approx([1, 1 / 3, 0, 0])


def test_the_command_exports_an_artifact(exported: Any, tmp_path: Path, capfd: Any) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 70, 3), np.uint8)).save(tmp_path / "one.png")
    line = ["export", str(exported[0] / "model.safetensors"), "--images", str(tmp_path), "-o", str(tmp_path / "files")]
    assert main([*line, "--mean", "0.5"]) == 2 and "normalizes by itself" in capfd.readouterr().err
    assert main(line) == 0
    done = subprocess.run(
        [sys.executable, str(tmp_path / "files" / "predict.py"), str(tmp_path / "one.png")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "one.png\t" in done.stdout, done.stderr


def test_the_command_exports_a_run_again(exported: Any, tmp_path: Path) -> None:
    directory, report = exported
    assert main(["export", str(directory), "--formats", "onnx", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "predict.py").is_file() and (tmp_path / "model.onnx").stat().st_size
    assert json.loads((directory / "report.json").read_text()) == report
