"""ONNX files: written by torch's exporter, checked by onnx, run by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from slim.deploy.extras import need, quiet_exporter
from slim.errors import RunFailed, SlimError
from slim.files import write_atomic


def write_onnx(
    program: ExportedProgram, path: Path, *, metadata: Mapping[str, Any] | None = None, opset: int | None = None
) -> Path:
    """Write a captured network as ONNX, for any batch size.

    Args:
        program: From :func:`slim.deploy.capture`.
        path: ``*.onnx``.
        metadata: Plain data by name; each value becomes a metadata property of the model, as JSON.
        opset: Of the ONNX operators; ``None``: the exporter's own, the newest that it writes everything in.

    Raises:
        SlimError: The exporter writes another opset than ``opset``.
        RunFailed: The exporter does not know an operator, or onnx refuses the file.
    """
    onnx = need("onnx", "onnxscript")
    with quiet_exporter():
        try:
            made = torch.onnx.export(program, (), dynamo=True, verbose=False, opset_version=opset)
            assert made is not None
            model = made.model_proto
            _forget_sources(model)
            onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in (metadata or {}).items()})
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # of torch, onnxscript, onnx_ir or onnx, each its own
            reason = " ".join(str(error).split())[:200]
            raise RunFailed(
                f"A network must be writable as ONNX. Got {type(error).__name__}: {reason}. "
                "Leave onnx out of export.formats."
            ) from error
    written = next(found.version for found in model.opset_import if found.domain in ("", "ai.onnx"))
    if opset is not None and written != opset:  # the exporter does not say that it could not convert to it
        raise SlimError(
            f"opset must be one that the exporter writes. Got opset={opset}, it wrote {written}. "
            "Set export.opset to that, or to null for the newest."
        )
    return write_atomic(path, model.SerializeToString())


def _forget_sources(model: Any) -> None:
    """Drop what the exporter notes of the source: stack traces with the paths of this machine."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *model.functions,
    ):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        if hasattr(part, "doc_string"):
            part.doc_string = ""


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: same arguments and outputs as the one it was written from.

    Args:
        path: The file.
        outputs: Structure of the outputs, ``program.call_spec.out_spec``; ``None``: one tensor, or a tuple.
        threads: Of ONNX Runtime; ``None``: as many as torch has.

    Raises:
        SlimError: ONNX Runtime cannot read the file.
    """

    def __init__(self, path: Path, outputs: Any = None, threads: int | None = None) -> None:
        super().__init__()
        self.session = session(path, threads)
        self.names = [found.name for found in self.session.get_inputs()]
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Tensors on the CPU in, tensors on the CPU out; the first axis is the batch."""
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        device = given[0].device if given else torch.device("cpu")
        feed = {
            name: tensor.detach().cpu().contiguous().numpy() for name, tensor in zip(self.names, given, strict=True)
        }
        found = [torch.from_numpy(array).to(device) for array in self.session.run(None, feed)]
        if self.outputs is not None:
            return tree_unflatten(found, self.outputs)
        return found[0] if len(found) == 1 else tuple(found)


def session(path: Path, threads: int | None = None) -> Any:
    """An inference session of ONNX Runtime on the CPU.

    Raises:
        SlimError: The file is missing, or ONNX Runtime cannot run it.
    """
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        reason = " ".join(str(error).split())[:200]
        raise SlimError(
            f"An ONNX file must be one that ONNX Runtime runs. Got {reason} ({path}). Export again."
        ) from error


def metadata_of(path: Path) -> dict[str, Any]:
    """What :func:`write_onnx` was given beside the network."""
    found = session(path, 1).get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in found.items()}
