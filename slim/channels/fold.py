"""Fold computed weights into plain ones, so that their channels can go exactly.

A weight divided by its own norm (``weight_norm``, ``spectral_norm``) or standardized in the forward (NFNets, BiT)
changes in all of its entries when one input channel goes. Stored as the plain weight it has come to, it does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slim.channels.duplicate import deep_copy
from slim.channels.meta_forward import call_arguments, random_states_kept, unwrap

Call = tuple[Tensor, Tensor, list[tuple[Any, ...]]]
"""Input and output of a module, and the arguments of the convolutions it ran."""
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SamePadConv2d(nn.Conv2d):
    """A convolution that pads its input so that ceil(size / stride) positions come out, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for i in (1, 0):
            size, stride = x.shape[2 + i], self.stride[i]
            reach = (self.kernel_size[i] - 1) * self.dilation[i] + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def fold(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """A copy of ``model`` in which weights that were computed in the forward are plain parameters.

    Parametrizations (``torch.nn.utils.parametrizations``) and the hooks of the older ``weight_norm`` and
    ``spectral_norm`` are removed. With ``example_inputs``, convolutions of classes of their own that compute their
    weight (weight standardization) become plain ones too, where that gives the same result. The function is the
    same; training goes on without the normalization of the weights. Plans made for the folded network belong to it.

    Args:
        model: Not changed.
        example_inputs: As of :func:`slim.trace`, with real values on the model's device.

    >>> net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 1))
    >>> sorted(name for name, _ in fold(net).named_parameters())
    ['0.bias', '0.weight', '1.bias', '1.weight']
    """
    folded = deep_copy(unwrap(model))
    for module in folded.modules():
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
        _remove_hooks(module)
    if example_inputs is None:
        return folded
    with random_states_kept():  # new layers draw weights before they get theirs
        return _fold_convolutions(folded, example_inputs)


def _remove_parametrizations(module: Any) -> None:
    """As ``remove_parametrizations``, which would take the attribute from the class that ``module`` shares."""
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _remove_hooks(module: nn.Module) -> None:
    """Take off the older ``weight_norm`` and ``spectral_norm``, and what the latter does to files."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            hook.remove(module)
            del module._forward_pre_hooks[key]
    hooks: Any
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):  # PyTorch wraps those of loading, so its own removal misses them
            if isinstance(getattr(hook, "hook", hook), (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)):
                del hooks[key]


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gathers the arguments of every convolution."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "convolution":
            self.seen.append(args)
        return func(*args, **(kwargs or {}))


def _fold_convolutions(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Replace, in place, convolutions whose forward computes their weight."""
    calls: dict[str, Call] = {}
    mode, handles = _Convolutions(), []
    for name, module in model.named_modules():
        if isinstance(module, _PLAIN) and not type(module).__module__.startswith("torch.nn."):
            handles += _watch(name, module, mode, calls)
    training = {module: module.training for module in model.modules()}
    args, kwargs = tree_map_only(Tensor, Tensor.detach, call_arguments(example_inputs))
    try:
        model.eval()
        with torch.no_grad(), mode:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode_before in training.items():
            module.training = mode_before
    for name, (x, out, seen) in calls.items():
        plain = _plain(model.get_submodule(name), x, out, seen)
        if plain is not None:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._modules[leaf] = plain
    return model


def _watch(name: str, module: nn.Module, mode: _Convolutions, calls: dict[str, Call]) -> list[Any]:
    def before(_: nn.Module, args: Any) -> None:
        mode.seen.clear()

    def after(_: nn.Module, args: Any, out: Tensor) -> None:
        calls[name] = args[0], out, list(mode.seen)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _plain(module: Any, x: Tensor, out: Tensor, seen: list[tuple[Any, ...]]) -> nn.Module | None:
    """The plain convolution that computes ``out`` from ``x``; None where there is none, or the module is one."""
    assert isinstance(module, _ConvNd)
    if len(seen) != 1 or seen[0][1].shape != module.weight.shape or torch.equal(seen[0][1], module.weight):
        return None
    _, weight, bias, stride, padding, dilation, transposed, _, groups = seen[0][:9]
    if transposed:
        return None
    base: Any = next(kind for kind in _PLAIN if isinstance(module, kind))
    kinds: list[tuple[Any, Any]] = [(base, tuple(padding))]
    if base is nn.Conv2d:
        kinds.append((SamePadConv2d, (0, 0)))
    for kind, pads in kinds:
        plain: Any = kind(
            module.in_channels, module.out_channels, module.kernel_size, tuple(stride), pads, tuple(dilation),
            groups, bias is not None, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            plain.weight.copy_(weight)
            if bias is not None:
                plain.bias.copy_(bias)
            result = plain(x)
        if result.shape == out.shape and torch.allclose(result, out, rtol=1e-4, atol=1e-5):
            plain.training = module.training
            return plain  # type: ignore[no-any-return]
    return None
