"""What a removed channel still says, said by its readers: the constant act(beta) moves into the next layer.

With gamma at zero a channel is not silent, it is constant: beta, through the activation. `slim.mask` and `slim.rebuild`
drop that constant. Here it is first moved into the layers that read the channel, into a bias or out of a BatchNorm's
running mean, so that the cut loses nothing where gamma is zero.

No rule per architecture: the network with the constants and the masked one run side by side on the same input, and
wherever a correction can be stored (the input of a BatchNorm, the output of a layer with a bias) the difference that
has arrived is stored and so does not travel on. Activations, residual sums, concatenations, pooling, gates: just run.

Exact in the interior. At the border of a zero-padded convolution the constant is missing under the padding, but the
stored correction is not, so the outermost (kernel - 1) / 2 rows and columns of each such layer are approximate; on
small maps (4x4, kernel 3) that is most of them. To measure the interior's value on maps of any size, both networks run
with replicated borders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slim.channels import Plan, mask, unwrap
from slim.channels.calls import after_call, before_call
from slim.channels.duplicate import deep_copy
from slim.channels.meta_forward import call_arguments
from slim.criteria.isolated import isolated
from slim.errors import SlimError
from slim.recovery.saved import Saved, saved

if TYPE_CHECKING:
    from slim.channels import ChannelGraph

Recorded = dict[tuple[str, int], Tensor]


def absorb(
    model: nn.Module,
    removed: Plan | npt.NDArray[np.bool_],
    graph: ChannelGraph,
    *,
    example_inputs: Any = None,
    in_place: bool = False,
) -> nn.Module:
    """A dense twin of ``model`` on which `mask` and `rebuild` with the same plan give the better function.

    Only running means and biases of layers that stay are changed; gamma of a removed channel is taken as zero, so the
    less true that is, the less is gained. Channels that no normalization scales (a bare convolution) have no constant
    and are left alone. A layer without bias whose output no BatchNorm ever reads cannot take a constant.

    Args:
        model: the network before the cut. Not changed unless ``in_place``.
        removed: the plan, or the bool mask ``(n_groups,)`` it was made from.
        graph: of ``model``.
        example_inputs: real values like the network's input (tensor, tuple, or dict); by default drawn at random in the
            shapes the graph was traced with. The constants do not depend on them.
        in_place: change ``model`` itself.

    Raises:
        SlimError: the plan or mask is not of this network, or no input is known.
    """
    model = unwrap(model)
    gone = _removed_groups(removed, graph)
    result = model if in_place else deep_copy(model)
    if not gone.any():
        return result
    plan = graph.plan(gone)
    inputs = _inputs(example_inputs, graph, model)
    constant, masked = _with_constants(model, graph, gone), mask(model, plan)
    for twin in (constant, masked):
        twin.eval()
    with torch.no_grad(), _replicated_borders(constant, masked):
        # Seeded alike: a forward that draws random numbers draws the same ones in both.
        with isolated(constant, 0):
            seen = _record(constant, inputs)
        with isolated(masked, 0):
            moved = _correct(masked, inputs, seen)
    stays = {name: keep.kept for (name, _), keep in plan.axes.items()}
    targets = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for name, change in moved.items():
            target = targets[name]
            kept = torch.as_tensor(stays.get(name, np.arange(len(target))), device=target.device)
            target[kept] += change[kept].to(target)
    return result


def constants(model: nn.Module) -> Saved:
    """Every tensor that :func:`absorb` may change."""
    found = (layer.running_mean if isinstance(layer, _BatchNorm) else layer.bias for _, layer in _takers(model))
    return saved(tensor for tensor in found if isinstance(tensor, Tensor))


def _removed_groups(removed: Plan | npt.NDArray[np.bool_], graph: ChannelGraph) -> npt.NDArray[np.bool_]:
    if not isinstance(removed, Plan):
        mask_of_groups = np.asarray(removed, bool)
        if mask_of_groups.shape != (len(graph),):
            raise SlimError(
                f"absorb needs a mask over the channel groups. Got shape {mask_of_groups.shape}, not ({len(graph)},). "
                "Use the selection made on this graph."
            )
        return mask_of_groups
    removed.validate(graph.model)
    gone = np.zeros(len(graph), bool)
    for axis, groups in graph.axes.items():
        keep = removed.axes.get(axis)
        if keep is not None:
            lost = groups[np.setdiff1d(np.arange(keep.size), keep.kept)]
            gone[lost[lost >= 0]] = True
    return gone


def _with_constants(model: nn.Module, graph: ChannelGraph, gone: npt.NDArray[np.bool_]) -> nn.Module:
    """The network in which removed channels have gamma 0 and keep beta; those without a scale are zero altogether."""
    twin = deep_copy(model)
    tensors = dict(twin.named_parameters())
    scaled = np.zeros(len(graph), bool)
    with torch.no_grad():
        for scale in graph.scales:
            if scale.weight is not None and scale.bias is not None:
                own = scale.groups >= 0
                lost = np.flatnonzero(own & gone[np.where(own, scale.groups, 0)])
                tensors[scale.weight].index_fill_(0, torch.as_tensor(lost, device=tensors[scale.weight].device), 0)
                scaled[scale.groups[lost]] = True
        bare = gone & ~scaled
        for (name, dim), groups in graph.axes.items():
            if name in tensors and not (name in graph.grouped and dim == 1):
                own = groups >= 0
                lost = np.flatnonzero(own & bare[np.where(own, groups, 0)])
                if len(lost):
                    tensors[name].index_fill_(dim, torch.as_tensor(lost, device=tensors[name].device), 0)
    return twin


def _takers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that can store a constant: BatchNorm at its input, contractions with a bias at their output."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            if module.running_mean is not None:
                yield name, module
        elif isinstance(module, _ConvNd | nn.Linear) and module._parameters.get("bias") is not None:
            yield name, module


def _record(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Recorded:
    """What arrives at every taker, per call."""
    seen: Recorded = {}
    calls: dict[str, int] = {}

    def note(name: str, value: Tensor) -> None:
        seen[name, calls.setdefault(name, 0)] = value
        calls[name] += 1

    handles = []
    for name, module in _takers(model):
        if isinstance(module, _BatchNorm):
            handles.append(before_call(module, lambda m, args, n=name: note(n, _read(m, args[0]))))
        else:
            handles.append(after_call(module, lambda m, args, out, n=name: note(n, out)))
    try:
        model(*inputs[0], **inputs[1])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _correct(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], seen: Recorded) -> dict[str, Tensor]:
    """Run the masked network, storing at each taker what it lacks; returns the change of every mean and bias."""
    moved: dict[str, Tensor] = {}
    # A tensor that several layers hold has one name.
    full_of = {id(tensor): full for full, tensor in (*model.named_parameters(), *model.named_buffers())}

    def before_norm(name: str, norm: Any, args: tuple[Any, ...]) -> None:
        full = full_of[id(norm.running_mean)]
        if full not in moved:  # a layer that is called again was corrected by its first call
            moved[full] = -_lack(seen[name, 0], _read(norm, args[0]), 1)
            norm.running_mean += moved[full]

    def after_bias(name: str, layer: Any, out: Tensor) -> Tensor:
        full = full_of[id(layer.bias)]
        if full in moved:  # corrected, too: this output has what its bias got
            return out
        axis = out.dim() - 1 if isinstance(layer, nn.Linear) else 1
        moved[full] = _lack(seen[name, 0], out, axis)
        layer.bias += moved[full]
        shape = [1] * out.dim()
        shape[axis] = -1
        return out + moved[full].view(shape)

    handles = []
    for name, module in _takers(model):
        if isinstance(module, _BatchNorm):
            handles.append(before_call(module, lambda m, args, n=name: before_norm(n, m, args)))
        else:
            handles.append(after_call(module, lambda m, args, out, n=name: after_bias(n, m, out)))
    try:
        model(*inputs[0], **inputs[1])
    finally:
        for handle in handles:
            handle.remove()
    return moved


def _lack(whole: Tensor, part: Tensor, axis: int) -> Tensor:
    """Per channel, the constant by which ``part`` is short of ``whole``: the median over samples and positions."""
    difference = (whole - part).movedim(axis, 0).flatten(1)
    return difference.median(dim=1).values


def _read(norm: Any, x: Tensor) -> Tensor:
    """What a BatchNorm normalizes: behind its selection layer, if it has one."""
    read: Tensor = norm.select(x) if hasattr(norm, "select") else x
    return read


@contextmanager
def _replicated_borders(*models: nn.Module) -> Iterator[None]:
    """Convolutions repeat their border instead of padding zeros, so that a constant stays one up to the edge."""
    changed: list[Any] = []
    for model in models:
        for module in model.modules():
            if (
                isinstance(module, _ConvNd)
                and not isinstance(module, _ConvTransposeNd)
                and module.padding_mode == "zeros"
            ):
                module.padding_mode = "replicate"
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module.padding_mode = "zeros"


def _inputs(example: Any, graph: ChannelGraph, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, on the model's device."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)

    def draw(spec: Any) -> Any:
        if "shape" in spec:
            dtype = getattr(torch, spec["dtype"])
            if not dtype.is_floating_point:
                return torch.zeros(spec["shape"], dtype=dtype, device=parameter.device)
            return torch.randn(spec["shape"], generator=generator).to(parameter.device, parameter.dtype)
        if "dict" in spec:
            return {key: draw(value) for key, value in spec["dict"].items()}
        parts = [draw(part) for part in spec["list"]]
        return tuple(parts) if spec["tuple"] else parts

    if example is None:
        if graph.inputs is None:
            raise SlimError(
                "absorb needs an input. Got a graph traced on inputs that are not plain tensors. Pass example_inputs."
            )
        example = draw(graph.inputs)
    return call_arguments(example)
