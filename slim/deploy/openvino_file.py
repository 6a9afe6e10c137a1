"""OpenVINO's files, made from the ONNX file: a quantized one stays quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from slim.deploy.extras import need, quiet_exporter
from slim.errors import RunFailed


def write_openvino(source: Path, path: Path) -> Path:
    """Convert an ONNX file to ``path`` (``*.xml``) and the weights beside it (``*.bin``).

    Raises:
        RunFailed: OpenVINO cannot read the ONNX file.
    """
    openvino = need("openvino")
    with quiet_exporter():
        try:
            openvino.save_model(openvino.convert_model(str(source)), str(path), compress_to_fp16=False)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RunFailed(
                f"A network must be convertible by OpenVINO. Got {type(error).__name__}: {reason}. "
                "Leave openvino out of export.formats."
            ) from error
    return path


class OpenVinoNetwork(nn.Module):
    """A file of OpenVINO as a network, on the CPU, in the precision that it holds."""

    def __init__(self, path: Path, outputs: Any = None, threads: int | None = None) -> None:
        super().__init__()
        openvino = need("openvino")
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads() if threads is None else threads,
        }
        self.compiled = openvino.Core().compile_model(str(path), "CPU", options)
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors in, tensors out; the first axis is the batch."""
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        results = self.compiled([tensor.detach().cpu().contiguous().numpy() for tensor in given])
        found = [torch.from_numpy(results[port].copy()) for port in self.compiled.outputs]
        if self.outputs is not None:
            return tree_unflatten(found, self.outputs)
        return found[0] if len(found) == 1 else tuple(found)
