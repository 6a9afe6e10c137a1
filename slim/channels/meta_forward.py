"""Run the forward of a model on meta tensors (or copies) without changing the model."""

from __future__ import annotations

import inspect
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.utils._pytree import tree_map_only

from slim.channels.attributes_kept import attributes_kept
from slim.channels.branches import operation_name
from slim.errors import expect


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel.

    Raises:
        SlimError: There is no network.
    """
    expect("model", model, nn.Module, "Pass the network itself.")
    while True:
        if hasattr(model, "_orig_mod"):
            inner: Any = model._orig_mod
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of arguments or a dict of keyword arguments, as (args, kwargs)."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


def meta_like(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor of the same shape, strides and dtype."""
    if tensor.is_meta:
        return tensor.detach()
    try:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    except RuntimeError:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def move_to_meta(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Move real tensors (index buffers, constants made in a forward) to meta if any argument is a meta tensor."""
    seen = [False, False]
    for a in (*args, *kwargs.values()):
        for t in a if isinstance(a, (list, tuple)) else (a,):
            if isinstance(t, torch.Tensor):
                seen[t.is_meta] = True
    if not all(seen):
        return args, kwargs
    moved: tuple[Any, Any] = tree_map_only(torch.Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
    return moved


_IN_PLACE = {"hardswish_", "hardtanh_", "elu_", "celu_", "leaky_relu_", "silu_", "relu_", "relu6_", "add_", "mul_"}
_BATCH_NORM = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}
_SAME_SHAPE = {"add", "mul", "sub", "div"}
_UNARY = {"relu", "silu", "gelu", "sigmoid", "hardswish", "hardsigmoid", "hardtanh", "tanh", "leaky_relu", "elu"}


def call_on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on meta tensors.

    Results of simple shape and dtype are made without PyTorch's meta kernels, which are Python code for elementwise
    operations and would take most of the time of a trace.
    """
    name = operation_name(func)
    first = args[0] if args and isinstance(args[0], torch.Tensor) else None
    if first is not None and first.is_meta and first.is_floating_point():
        second = args[1] if len(args) > 1 else None
        if name in _IN_PLACE and (not isinstance(second, torch.Tensor) or second.shape == first.shape):
            return first
        if name == "convolution" and (shape := _convolved(first, args)) is not None:
            return _empty(shape, first)
        if name in _BATCH_NORM:
            return _empty(first.shape, first), _empty((0,), first), _empty((0,), first)
        if name in _UNARY:
            return _dense_like(first)
        if name in _SAME_SHAPE and isinstance(second, torch.Tensor) and second.dtype == first.dtype:
            if second.shape == first.shape and second.stride() == first.stride():
                return _dense_like(first)
            if second.ndim == first.ndim and all(m in (n, 1) for n, m in zip(first.shape, second.shape, strict=True)):
                return _dense_like(first)
        if name == "mean" and isinstance(second, (list, tuple)) and second and kwargs.get("dtype") is None:
            keep = len(args) > 2 and args[2]
            gone = {d % first.ndim for d in second}
            if len(gone) == len(second):
                return _empty(
                    [1 if d in gone else n for d, n in enumerate(first.shape) if keep or d not in gone], first
                )
    return func(*args, **kwargs)


def _empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """What ``like.new_empty`` gives, without the Python in which meta tensors run it."""
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _dense_like(tensor: torch.Tensor) -> torch.Tensor:
    """What ``torch.empty_like`` gives, most often without its Python."""
    return _empty(tensor.shape, tensor) if tensor.is_contiguous() else torch.empty_like(tensor)


def _convolved(image: torch.Tensor, args: Any) -> list[int] | None:
    """The shape of a plain convolution's result; None for PyTorch to say, errors included."""
    _, weight, bias, stride, padding, dilation, transposed, _, groups = args
    spatial = image.ndim - 2
    if (
        transposed
        or not (weight.is_meta and weight.ndim == image.ndim > 2 and weight.dtype == image.dtype)
        or not (image.is_contiguous() and weight.is_contiguous())
        or image.shape[1] != weight.shape[1] * groups
        or weight.shape[0] % groups
        or (bias is not None and bias.shape != weight.shape[:1])
        or not len(stride) == len(padding) == len(dilation) == spatial
    ):
        return None
    sizes = [
        (image.shape[d + 2] + 2 * padding[d] - dilation[d] * (weight.shape[d + 2] - 1) - 1) // stride[d] + 1
        for d in range(spatial)
    ]
    return [image.shape[0], weight.shape[0], *sizes] if min(sizes) > 0 else None


_BLOCK_NOISE = {"torchvision.DropBlock2d", "torchvision.DropBlock3d"}
"""Modules (package and class) whose noise in training is as wide as their input, made where no operation shows that."""


_NOISE_ONLY = {"torch", "torchvision", "timm", "transformers"}
"""Packages whose modules, in training, do no more than add noise to what they do (heads of their own aside)."""


def asks_for_mode(model: nn.Module) -> bool:
    """Whether the code of a module asks if it is trained, so that its forward may be another then."""
    kinds = {kind for m in model.modules() for kind in type(m).__mro__}
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in _NOISE_ONLY]
    methods = (inspect.unwrap(f) for kind in own for f in vars(kind).values() if inspect.isfunction(f))
    return any("training" in f.__code__.co_names for f in methods if hasattr(f, "__code__"))


def _draws_noise(module: nn.Module) -> bool:
    return f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}" in _BLOCK_NOISE


@contextmanager
def random_states_kept() -> Iterator[None]:
    """A forward may draw random numbers: on exit the states of torch (CPU), numpy and Python are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _any_algorithm() -> Iterator[None]:
    """Inside, operations without a deterministic implementation run, too: nobody sees what they compute."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


@contextmanager
def temporary_state(model: nn.Module, *, meta: bool, training: bool) -> Iterator[None]:
    """Replace the tensors and the mode of a model; on exit everything is restored, random states included.

    Parameters and float buffers become meta tensors (or copies with ``meta=False``). Integer buffers keep their
    values in a copy: they are indices, and a forward may count in them. Modules that only add noise stay in eval mode.
    """
    substitutes: dict[int, torch.Tensor] = {}
    scripts: list[tuple[nn.Module, bool]] = []

    def substitute(name: str, store: dict[str, Any], key: str, buffer: bool) -> None:
        tensor = store[key]
        if tensor is None:
            return
        if id(tensor) not in substitutes:
            if buffer and not (tensor.is_floating_point() or tensor.is_complex()):
                other = tensor.detach() if tensor.is_meta else tensor.detach().clone()
            else:
                other = meta_like(tensor) if meta else tensor.detach().clone()  # a forward may write into its weights
            if other.is_floating_point():
                other._slim_param = name
            substitutes[id(tensor)] = other
        store[key] = substitutes[id(tensor)]

    with attributes_kept(model), random_states_kept(), _any_algorithm():
        try:
            for prefix, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):  # compiled, and without tensors: see ``trace``
                    scripts.append((module, module.training))
                    module.training = training
                    continue
                dot = prefix + "." if prefix else ""
                for key in list(module._parameters):
                    substitute(dot + key, module._parameters, key, buffer=False)
                for key in list(module._buffers):
                    substitute(dot + key, module._buffers, key, buffer=True)
                module.training = training and not _draws_noise(module)
            yield
        finally:
            for module, mode in scripts:
                module.training = mode


@contextmanager
def module_stack(
    stack: list[nn.Module],
    failed: list[nn.Module],
    entered: Callable[[nn.Module, Any], None] | None = None,
    left: Callable[[nn.Module, Any], None] | None = None,
) -> Iterator[None]:
    """Keep ``stack`` the modules whose forward is running; on an exception note the innermost one in ``failed``."""

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(module)
        if entered is not None:
            entered(module, args)

    def leave(module: nn.Module, _: Any, out: Any) -> None:
        if left is not None:
            left(module, out)
        # A forward that raised and was caught by its caller leaves its modules behind: drop down to this one.
        while stack and stack.pop() is not module:
            pass

    before = nn_module.register_module_forward_pre_hook(enter)
    after = nn_module.register_module_forward_hook(leave)
    try:
        yield
    except Exception:
        failed += stack[-1:]
        raise
    finally:
        before.remove()
        after.remove()
        stack.clear()


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, dicts, dataclasses (with slots, too) and plain objects."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, Mapping):
            parts: Any = value.values()
        elif isinstance(value, (list, tuple, set, frozenset, deque, ValuesView)):
            parts = value
        elif isinstance(value, (nn.Module, type)):
            parts = ()
        else:
            told = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
            slots = [name for names in told for name in ((names,) if isinstance(names, str) else names)]
            parts = [*getattr(value, "__dict__", {}).values()]
            parts += [getattr(value, name) for name in slots if name != "__dict__" and hasattr(value, name)]
        for part in parts:
            yield from tensors_in(part, seen)
