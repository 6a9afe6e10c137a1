"""What a network can be exported as: the file of each format, how it is written, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim.deploy.capture import graph_of
from slim.deploy.extras import need
from slim.deploy.onnx_file import OnnxNetwork
from slim.deploy.openvino_file import OpenVinoNetwork

Load = Callable[[Path, Any, int | None], nn.Module]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: Its name in the export folder.
        load: File, structure of the outputs and number of threads -> a network that runs it on the CPU.
        packages: That it cannot do without.
        quantized: Whether it computes in int8.
        source: The format that it is made from; ``None``: the captured network.
    """

    file: str
    load: Load
    packages: tuple[str, ...] = ()
    quantized: bool = False
    source: str | None = None


class Pt2Network(nn.Module):
    """A ``.pt2`` file as a network: torch runs its graph, operator by operator."""

    def __init__(self, path: Path, outputs: Any = None, threads: int | None = None) -> None:
        super().__init__()
        self.graph = graph_of(torch.export.load(path))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network's."""
        return self.graph(*args, **kwargs)


class Int8Pt2Network(Pt2Network):
    """A quantized ``.pt2`` file: its operators for rounding come from torchao."""

    def __init__(self, path: Path, outputs: Any = None, threads: int | None = None) -> None:
        need("torchao.quantization.pt2e.quantize_pt2e")  # registers them
        super().__init__(path, outputs, threads)


FORMATS = {
    "onnx": Format("model.onnx", OnnxNetwork, ("onnx", "onnxscript", "onnxruntime")),
    "int8": Format("model.int8.onnx", OnnxNetwork, ("onnx", "onnxscript", "onnxruntime"), True, "onnx"),
    "pt2": Format("model.pt2", Pt2Network),
    "pt2_int8": Format("model.int8.pt2", Int8Pt2Network, ("torchao",), True),
    "openvino": Format("model.openvino.xml", OpenVinoNetwork, ("openvino",), False, "onnx"),
    "openvino_int8": Format("model.int8.openvino.xml", OpenVinoNetwork, ("openvino",), True, "int8"),
}
"""Every format, each after the one that it is made from."""


def size(path: Path) -> int:
    """Bytes on disk of an exported file, with the weights that OpenVINO keeps beside it."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)
