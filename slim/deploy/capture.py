"""The network as a graph of operators for any batch size, its BatchNorms folded into the convolutions before them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._pytree import tree_map

from slim.channels import unwrap
from slim.channels.duplicate import deep_copy
from slim.channels.meta_forward import call_arguments
from slim.deploy.extras import quiet_exporter
from slim.errors import RunFailed

_CONVOLUTIONS = ("conv1d.default", "conv2d.default", "conv3d.default", "conv2d.padding", "conv1d.padding")


def capture(network: nn.Module, example: Any) -> ExportedProgram:
    """Export ``network`` as it computes in eval mode, in float32 on the CPU, with BatchNorm folded.

    Args:
        network: Not changed.
        example: One input: a tensor ``(N, ...)``, a tuple, or a dict of keyword arguments. The first axis of every
            tensor is the batch, of any size in what is returned.

    Raises:
        RunFailed: ``torch.export`` cannot follow the network; the reason in one line.
    """
    network = deep_copy(unwrap(network)).cpu().float().eval().to(memory_format=torch.contiguous_format)
    try:
        program = _export(network, *arguments(example, 2))
        graph = graph_of(program)
        return recapture(graph, program) if fold_norms(graph) else program
    except Exception as error:  # dynamo raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"A network must be exportable by torch.export. Got {type(error).__name__}: {reason} "
            f"({type(network).__name__}). Leave export out of phases, or change its forward."
        ) from error


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """A captured network as a graph of its own, which can be changed and trained."""
    # Guards would check that inputs are as in the example; newer releases of torch add them.
    options = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    graph = copy.deepcopy(program.module(**options))
    assert isinstance(graph, fx.GraphModule)
    return graph


def recapture(graph: nn.Module, program: ExportedProgram) -> ExportedProgram:
    """Capture a changed graph of ``program`` again, with the same inputs."""
    args, kwargs = program.example_inputs
    return _export(graph, args, kwargs)


def _export(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    def batch_of_any_size(leaf: Any) -> Any:
        return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.dim() else None

    shapes = tree_map(batch_of_any_size, kwargs or args)
    with quiet_exporter():  # which logs the whole graph of what it cannot follow
        return torch.export.export(network, args, kwargs, dynamic_shapes=shapes)


def arguments(example: Any, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with the first sample of ``example`` repeated ``batch`` times, on the CPU.

    Numbers of half and double precision become float32, as what is captured computes.

    >>> arguments(torch.zeros(1, 3), 2)[0][0].shape
    torch.Size([2, 3])
    """

    def grow(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        sample = leaf[:1].detach().cpu()
        sample = sample.float() if sample.is_floating_point() else sample
        return sample.expand(batch, *leaf.shape[1:]).contiguous()

    return call_arguments(tree_map(grow, example))


def fold_norms(graph: fx.GraphModule) -> int:
    """Fold every BatchNorm that alone reads a convolution or linear layer into it, in place.

    Jacob et al. 2018, arXiv:1712.05877, section 3.2. A BatchNorm before its convolution stays.

    Args:
        graph: Of ``torch.export``, in eval mode.

    Returns:
        The number of BatchNorms that are gone.
    """
    folded = 0
    for norm in list(graph.graph.nodes):
        if str(norm.target) != "aten.batch_norm.default" or bool(norm.args[5]):
            continue
        layer = norm.args[0]
        kind = str(layer.target).removeprefix("aten.")
        if len(layer.users) != 1 or kind not in (*_CONVOLUTIONS, "linear.default") or not _own(layer.args[1]):
            continue
        if kind == "linear.default" and layer.meta["val"].ndim != 2:  # its features are not the BatchNorm's axis 1
            continue
        if not all(value is None or _stored(value) for value in (*layer.args[2:3], *norm.args[1:5])):
            continue
        _fold(graph, layer, norm, fuse_linear_bn_weights if kind == "linear.default" else fuse_conv_bn_weights)
        folded += 1
    if folded:
        graph.graph.eliminate_dead_code()
        graph.recompile()
        _forget_unread(graph)
    return folded


def _forget_unread(graph: fx.GraphModule) -> None:
    """Drop parameters and buffers that no node reads: they would be stored with the graph."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in read:
            owner, _, last = name.rpartition(".")
            delattr(graph.get_submodule(owner), last)


def _own(weight: Any) -> bool:
    """Whether a weight is read by one layer only."""
    return _stored(weight) and len(weight.users) == 1


def _stored(value: Any) -> bool:
    """Whether it is a parameter or a buffer, not computed."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _fold(graph: fx.GraphModule, layer: fx.Node, norm: fx.Node, fuse: Any) -> None:
    def value(node: Any) -> Any:
        return _attribute(graph, str(node.target)) if isinstance(node, fx.Node) else node

    bias = layer.args[2] if len(layer.args) > 2 else None
    gamma, beta, mean, var = (value(node) for node in norm.args[1:5])
    with torch.no_grad():
        weight, shift = fuse(value(layer.args[1]), value(bias), mean, var, norm.args[7], gamma, beta)
    names = []
    for suffix, tensor in (("weight", weight), ("bias", shift)):
        names.append(f"folded_{layer.name}_{suffix}")
        graph.register_parameter(names[-1], nn.Parameter(tensor.detach().clone(), requires_grad=True))
    with graph.graph.inserting_before(layer):
        made = tuple(graph.graph.get_attr(name) for name in names)
    layer.args = (layer.args[0], *made, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def _attribute(graph: nn.Module, path: str) -> Any:
    found: Any = graph
    for part in path.split("."):
        found = getattr(found, part)
    return found
