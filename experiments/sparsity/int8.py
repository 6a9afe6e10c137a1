"""Export to ONNX, and ONNX Runtime's static quantization: QDQ, per channel, calibrated on training images."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.nocliff.data import Images, normalize
from experiments.sparsity.training import EXAMPLE


def export(model: nn.Module) -> bytes:
    """ONNX of ``model`` in eval mode, BatchNorm folded, any batch size."""
    model.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter about its own parts
        path = Path(folder) / "model.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            model, (EXAMPLE.expand(2, -1, -1, -1).contiguous(),), path, dynamo=True, dynamic_shapes=({0: batch},),
            input_names=["images"], output_names=["logits"], external_data=False, verbose=False,
        )  # fmt: skip
        return path.read_bytes()


class Reader:
    """Batches of 50 in the form that onnxruntime's calibration asks for."""

    def __init__(self, images: Images) -> None:
        self.batches = iter(normalize(x).contiguous().numpy() for x in images.x.split(50))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """One batch, None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def quantize(model: nn.Module, images: Images) -> bytes:
    """The int8 file. Weights have 7 bits: processors without VNNI saturate on 8 (onnxruntime's ``reduce_range``)."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        Path(plain).write_bytes(export(model))
        quant_pre_process(plain, ready)
        quantization.quantize_static(
            ready, done, Reader(images), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        return Path(done).read_bytes()


def session(data: bytes, threads: int = 1) -> Any:
    """An ONNX Runtime session on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def accuracy(data: bytes, images: Images) -> float:
    """Percent right of an ONNX file."""
    running = session(data)
    right = 0
    for x, y in zip(images.x.split(500), images.y.split(500), strict=True):
        logits = running.run(None, {"images": normalize(x).contiguous().numpy()})[0]
        right += int((logits.argmax(1) == y.numpy()).sum())
    return 100 * right / len(images)
