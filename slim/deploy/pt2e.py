"""int8 in PyTorch's own graph: static quantization and quantization-aware fine-tuning by torchao's PT2E flow."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from slim.deploy.capture import graph_of, recapture
from slim.deploy.extras import need, quiet_exporter
from slim.deploy.quantize import has_vnni
from slim.errors import RunFailed

Inputs = Any
"""Inputs of the network, as in an example: a tensor, a tuple, or a dict of keyword arguments."""


def quantized(
    program: ExportedProgram, inputs: Iterable[Inputs], *, reduce_range: bool | None = None
) -> ExportedProgram:
    """The captured network with int8 weights, per channel, and uint8 activations with the ranges that ``inputs`` show.

    Args:
        program: From :func:`slim.deploy.capture`; not changed.
        inputs: Real inputs, read once.
        reduce_range: Activations of 7 bits, for processors without VNNI; ``None``: as this machine needs it.

    Raises:
        RunFailed: torchao cannot quantize the network.
    """
    flow = need("torchao.quantization.pt2e.quantize_pt2e")
    with quiet_exporter(), _explained():
        graph = flow.prepare_pt2e(_annotated(graph_of(program)), _quantizer(qat=False, reduce_range=reduce_range))
        with torch.no_grad():
            for batch in inputs:
                call(graph, batch)
        return recapture(flow.convert_pt2e(graph), program)


def finetuned(
    program: ExportedProgram, inputs: Iterable[Inputs], *, lr: float = 1e-4, reduce_range: bool | None = None
) -> ExportedProgram:
    """The captured network in float32, its weights fine-tuned so that quantization costs less.

    In every forward weights and activations are rounded as int8 will round them, and gradients pass straight through
    (Jacob et al. 2018, arXiv:1712.05877). BatchNorm is folded before, not in training as there. The loss is the mean
    squared distance from the outputs of the network before: that needs no labels, and serves every task.

    Args:
        program: From :func:`slim.deploy.capture`; not changed.
        inputs: Of the training data; each is a step of Adam.
        lr: Of the first step; it falls to zero by a cosine.
        reduce_range: As in :func:`quantized`.

    Raises:
        RunFailed: torchao cannot prepare the network.
    """
    flow = need("torchao.quantization.pt2e.quantize_pt2e")
    with quiet_exporter(), _explained():
        teacher, student = graph_of(program), graph_of(program)
        quantizer = _quantizer(qat=True, reduce_range=reduce_range)
        prepared = flow.prepare_qat_pt2e(_annotated(graph_of(program)), quantizer)
        _train(prepared, teacher, list(inputs), lr)
        trained = prepared.state_dict()
        student.load_state_dict({name: trained[name] for name in student.state_dict()})
        return recapture(student, program)


def _train(student: nn.Module, teacher: nn.Module, batches: list[Inputs], lr: float) -> None:
    optimizer = torch.optim.Adam([value for value in student.parameters() if value.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(batches)))
    for batch in batches:
        with torch.no_grad():
            wanted = _floats(call(teacher, batch))
        got = _floats(call(student, batch))
        # Outputs of any scale count alike.
        parts = [(a - b).square().mean() / b.square().mean().clamp_min(1e-12) for a, b in zip(got, wanted, strict=True)]
        optimizer.zero_grad()
        torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"A network must be quantizable by torchao. Got {type(error).__name__}: {reason}. "
            "Leave pt2_int8 out of export.formats, and set export.qat=never."
        ) from error


_SOURCES = {
    "conv2d": nn.Conv2d, "linear": nn.Linear, "relu": nn.ReLU, "hardtanh": nn.ReLU6, "add": operator.add,
    "silu": nn.SiLU, "hardswish": nn.Hardswish,
}  # fmt: skip


def _annotated(graph: fx.GraphModule) -> fx.GraphModule:
    """Write down what each operator was made from, which the quantizer looks for: a node each.

    Without it a module that is called several times, such as a ReLU of a residual block, is taken for one operator.
    """
    for node in graph.graph.nodes:
        if node.op == "call_function":
            kind = str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")
            node.meta["source_fn_stack"] = [(node.name, _SOURCES.get(kind, node.target))]
    return graph


def call(network: Any, batch: Inputs) -> Any:
    """Call a network with the inputs of a batch."""
    if isinstance(batch, dict):
        return network(**batch)
    return network(*batch) if isinstance(batch, tuple) else network(batch)


def _floats(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _quantizer(*, qat: bool, reduce_range: bool | None) -> Any:
    x86 = need("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    reduce_range = not has_vnni() if reduce_range is None else reduce_range
    options = x86.get_default_x86_inductor_quantization_config(is_qat=qat, reduce_range=reduce_range and not qat)
    if qat and reduce_range:
        # As the ONNX file has it, for which this is: weights of 7 bits, where torchao would take a bit of activations.
        options = replace(options, weight=replace(options.weight, quant_min=-64, quant_max=63))
    if not qat:
        # Ranges from the smallest and largest value, as in the ONNX file; histograms take a hundred times as long.
        observer = need("torchao.quantization.pt2e.observer").MinMaxObserver
        found = replace(options.input_activation, observer_or_fake_quant_ctr=observer.with_args(eps=2**-12))
        options = replace(options, input_activation=found, output_activation=found)
    return x86.X86InductorQuantizer().set_global(options)
