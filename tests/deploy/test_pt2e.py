"""int8 by torchao: near the network, in int8 weights, and nearer after fine-tuning for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from slim import deploy
from slim.deploy.capture import capture
from slim.deploy.onnx_file import OnnxNetwork, write_onnx
from slim.deploy.quantize import write_int8
from tests.deploy.small import SIZE, images, network

pytest.importorskip("torchao")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network(all_fold=True)


@pytest.fixture(scope="module")
def program(net: nn.Module) -> ExportedProgram:
    return capture(net, EXAMPLE)


def test_the_file_is_near_and_holds_bytes(net: nn.Module, tmp_path: Path) -> None:
    def compare(runner: nn.Module) -> deploy.Parity:
        return deploy.compare(net, runner, [*images(1, seed=1), torch.randn(3, 3, SIZE, SIZE)])

    options = deploy.Options(("pt2_int8",), max_loss=0.2)
    found = deploy.export(net, EXAMPLE, tmp_path, options, compare=compare, calibration=images)
    assert 1e-5 < found.parity["pt2_int8"].relative < 0.1
    kept = torch.export.load(tmp_path / "model.int8.pt2").state_dict.values()
    assert sum(value.dtype == torch.int8 and value.dim() == 4 for value in kept) == 3


def test_auto_tunes_only_where_int8_loses(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def tune(program: ExportedProgram, inputs: object, **options: object) -> ExportedProgram:
        calls.append(1)
        return program

    monkeypatch.setattr(sys.modules["slim.deploy.export"], "finetuned", tune)
    for lost, count in ((0.0, 0), (0.01, 1)):

        def compare(runner: nn.Module, lost: float = lost) -> deploy.Parity:
            return deploy.Parity(images=1, scale=1.0, reference=0.9, metric=0.9 - lost)

        options = deploy.Options(("int8",), qat="auto")
        found = deploy.export(
            net, EXAMPLE, tmp_path, options, compare=compare, calibration=images, training=lambda: images(1)
        )
        assert len(calls) == count == len(found.notes)


def test_finetuning_brings_int8_nearer(net: nn.Module, program: ExportedProgram, tmp_path: Path) -> None:
    """Weights that were rounded as the ONNX file rounds them give what the network gave, on images not seen before."""
    from slim.deploy.pt2e import finetuned

    tuned = finetuned(program, images(40, seed=5), lr=2e-4, reduce_range=True)
    off = []
    for number, candidate in enumerate((program, tuned)):
        source = write_onnx(candidate, tmp_path / f"{number}.onnx")
        file = write_int8(source, tmp_path / f"{number}.int8.onnx", images(), reduce_range=True)
        runner = OnnxNetwork(file)
        with torch.no_grad():
            off.append(sum(float((runner(x) - net(x)).square().mean()) for x in images(4, seed=6)))
    assert off[1] < 0.8 * off[0]
    assert program.state_dict.keys() == tuned.state_dict.keys()
