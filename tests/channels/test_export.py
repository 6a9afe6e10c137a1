"""The thin network leaves the house thin: ONNX initializers, and the same answers in ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import slim
from slim.models import densenet, resnet
from tests.channels.laws import removal

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(("build", "residual"), [(resnet, "group"), (densenet, "select")])
def test_onnx_is_thin_and_right(build: object, residual: str, tmp_path: Path) -> None:
    net = build(depth=8 if build is resnet else 10).eval()  # type: ignore[operator]
    x = torch.randn(2, 3, 32, 32)
    graph = slim.trace(net, x, residual=residual)
    thin = slim.rebuild(net, graph.plan(removal(graph, 0.5, 0))).eval()
    path = tmp_path / "thin.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(thin, (x,), str(path), dynamo=False)
    initializers = {i.name: tuple(i.dims) for i in onnx.load(str(path)).graph.initializer}
    weights = {shape for shape in initializers.values() if len(shape) == 4}
    expected = {tuple(m.weight.shape) for m in thin.modules() if isinstance(m, torch.nn.Conv2d)}
    assert weights == expected
    assert weights.isdisjoint(
        {tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Conv2d)} - expected
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, thin(x).numpy(), rtol=1e-3, atol=1e-4)
