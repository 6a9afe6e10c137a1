"""Gates: a factor of one per channel and sample; its gradient is the effect of the channel on that sample's loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from slim.channels.calls import after_call
from slim.criteria.tensors import out_groups, weights

if TYPE_CHECKING:
    from slim.channels import ChannelGraph, Scale

Ints = npt.NDArray[np.int64]


@contextmanager
def gated(graph: ChannelGraph, *, beta: bool) -> Iterator[list[tuple[Ints, Tensor]]]:
    """Put a gate after every scale, or, in a network without scales, after every layer that produces channels.

    Inside, each forward appends (groups (C,), gate (N, C)) per gated call to the yielded list; the outputs are
    unchanged. With ``beta`` false a gate scales gamma's part alone, so that its gradient is gamma * dL/dgamma.
    """
    places: list[tuple[str, int, str | None, Ints]] = []
    modules = dict(graph.model.named_modules())
    for scale in graph.scales:
        if scale.weight is not None and _is_norm(modules.get(scale.module), scale):
            places.append((scale.module, -1 if scale.kind == "layer" else 1, scale.bias, scale.groups))
    if not places:
        for layer, weight, dim in weights(graph):
            groups = out_groups(graph, weight, dim)
            if groups is not None and (groups >= 0).any():
                linear = isinstance(graph.model.get_submodule(layer), nn.Linear)
                places.append((layer, -1 if linear else 1, None, groups))
    calls: list[tuple[Ints, Tensor]] = []

    def make_hook(module: nn.Module, dim: int, bias: bool, groups: Ints) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> Any:
            gate = out.new_ones(len(out), len(groups), requires_grad=True)
            calls.append((groups, gate))
            shape = [len(out)] + [1] * (out.ndim - 1)
            shape[dim] = len(groups)
            factor = gate.view(shape)
            shift = getattr(module, "bias", None)
            if bias and shift is not None:
                shape[0] = 1
                at = shift.detach().view(shape)
                return at + factor * (out - at)
            return out * factor

        return hook

    handles = []
    try:
        for name, dim, shift, groups in places:
            module = graph.model.get_submodule(name)
            handles.append(after_call(module, make_hook(module, dim, shift is not None and not beta, groups)))
        with torch.enable_grad():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(module: nn.Module | None, scale: Scale) -> bool:
    """Whether a module gives out what the scale scales; a normalization that is called as a function runs in any."""
    if module is None or isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        return module is not None
    return {f"{scale.module}.{name}" for name, _ in module.named_parameters()} <= {scale.weight, scale.bias}
