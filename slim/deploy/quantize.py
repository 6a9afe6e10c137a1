"""int8 ONNX: static quantization by ONNX Runtime, scales per channel, ranges from real inputs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from slim.deploy.extras import need, quiet_exporter
from slim.deploy.onnx_file import metadata_of
from slim.errors import RunFailed
from slim.files import write_atomic

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def write_int8(
    source: Path,
    path: Path,
    inputs: Iterable[Any],
    *,
    method: str = "minmax",
    reduce_range: bool | None = None,
) -> Path:
    """Quantize an ONNX file: weights int8 with a scale per channel, activations uint8 with one per tensor.

    The file keeps float inputs and outputs; between them stand pairs of QuantizeLinear and DequantizeLinear, which
    every runtime with integer arithmetic fuses with the operators around them. What comes after the last weights, such
    as a softmax or the arithmetic of boxes, stays in float: it is little work, and decides.

    Args:
        source: From :func:`write_onnx`; its metadata are kept.
        path: The quantized ``*.onnx``.
        inputs: Inputs of the network, as in an example, to find the ranges of activations with; read once.
        method: How a range follows from what was seen: minmax, entropy or percentile.
        reduce_range: Weights of 7 bits: without VNNI, products of 8 bits saturate in pairs. ``None``: as this machine
            needs it.

    Raises:
        RunFailed: ONNX Runtime cannot quantize the file; the reason in one line.
    """
    quantization = need("onnxruntime.quantization", "onnx")
    onnx = need("onnx")
    reduce_range = not has_vnni() if reduce_range is None else reduce_range
    with tempfile.TemporaryDirectory() as folder, quiet_exporter():
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        try:
            need("onnxruntime.quantization.shape_inference").quant_pre_process(
                str(source), str(ready), skip_symbolic_shape=True
            )
            quantization.quantize_static(
                str(ready),
                str(made),
                _reader(ready, inputs if method == "minmax" else _one_by_one(inputs), quantization),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, METHODS[method]),
                nodes_to_exclude=_after_weights(onnx.load(str(ready)).graph),
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
            model = onnx.load(str(made))
            onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata_of(source).items()})
            onnx.checker.check_model(model)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RunFailed(
                f"A network must be quantizable by ONNX Runtime. Got {type(error).__name__}: {reason}. "
                "Leave int8 out of export.formats."
            ) from error
        return write_atomic(path, model.SerializeToString())


def _after_weights(graph: Any) -> list[str]:
    """Names of the nodes from which no node with weights follows."""
    weights = {found.name for found in graph.initializer}
    before: set[str] = set()  # tensors that come to weights
    after = []
    for node in reversed(graph.node):
        if (node.op_type in WEIGHTED and weights & set(node.input)) or before & set(node.output):
            before.update(node.input)
        else:
            after.append(node.name)
    return after


def _reader(path: Path, inputs: Iterable[Any], quantization: Any) -> Any:
    """The calibration data in the form that ONNX Runtime wants."""
    from slim.deploy.onnx_file import session

    names = [found.name for found in session(path, 1).get_inputs()]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = (feed(names, batch) for batch in inputs)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    return Reader()


def _one_by_one(inputs: Iterable[Any]) -> Iterator[Any]:
    """Every sample as a batch of its own: histograms are only made of batches of one size, and the last one is less."""
    for batch in inputs:
        count = next((len(leaf) for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)), 0)
        for i in range(count):
            yield tree_map_only(Tensor, itemgetter(slice(i, i + 1)), batch)


def feed(names: list[str], batch: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Input names -> arrays, for ONNX Runtime."""
    tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}


def has_vnni() -> bool:
    """Whether this processor multiplies bytes without saturating in between; where nobody can tell, it is taken to."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "x86" not in _architecture() or any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _architecture() -> str:
    import platform

    return platform.machine().lower().replace("amd64", "x86_64")
