"""Run a network on meta tensors of its example's shapes: whether a thin one runs, and what its example was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.channels.meta_forward import call_arguments, call_on_meta, module_stack, move_to_meta, temporary_state
from slim.channels.plan import Plan
from slim.errors import SlimError


class _OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves real tensors to meta where they meet meta tensors (index buffers, constants)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = move_to_meta(args, kwargs or {})
        return call_on_meta(func, args, kwargs)


def on_meta() -> Any:
    """A context in which real tensors may meet meta tensors."""
    return _OnMeta()  # type: ignore[no-untyped-call]


def forward_on_meta(
    network: nn.Module, args: Any, kwargs: Any, watch: AbstractContextManager[Any] | None = None
) -> Any:
    """What an eval forward on meta tensors returns; the network is as before when this returns.

    Args:
        network: Any; its parameters and float buffers are replaced by meta tensors while it runs.
        args: Positional inputs.
        kwargs: Inputs by name.
        watch: A context around the forward. It sees operations first: some are answered without PyTorch.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        temporary_state(network, meta=True, training=False),
        on_meta(),
        watch or nullcontext(),
    ):
        return network(*args, **kwargs)


def input_spec(value: Any) -> Any:
    """Shapes and dtypes of example inputs as JSON data; None where they hold anything else."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in (tuple, list):  # what derives from them may be more than JSON gives back (named tuples)
        parts = [input_spec(v) for v in value]
        return None if any(p is None for p in parts) else {"list": parts, "tuple": isinstance(value, tuple)}
    if type(value) in (dict, OrderedDict) and all(isinstance(k, str) for k in value):
        items = {k: input_spec(v) for k, v in value.items()}
        return None if any(p is None for p in items.values()) else {"dict": items}
    return None


def inputs_from_spec(spec: Any) -> Any:
    """Meta tensors of the shapes and dtypes that :func:`input_spec` describes."""
    if "shape" in spec:
        dtype = getattr(torch, str(spec["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError("dtype")
        return torch.empty([int(n) for n in spec["shape"]], dtype=dtype, device="meta")
    if "dict" in spec:
        return {str(k): inputs_from_spec(v) for k, v in spec["dict"].items()}
    parts = [inputs_from_spec(v) for v in spec["list"]]
    return tuple(parts) if spec["tuple"] else parts


def check_forward(thin: nn.Module, plan: Plan, model: nn.Module) -> None:
    """Run the thin network on meta tensors of the example's shapes, or on numbers where its forward asks for them.

    Nothing is known where ``model``, which it was made from, runs on neither: its forward is another than that which
    the plan was made for.

    Raises:
        SlimError: naming the module whose forward fixes a width.
    """
    if plan.inputs is None:
        return
    try:
        args, kwargs = call_arguments(inputs_from_spec(plan.inputs))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError):  # sizes, too, may be odd
        raise SlimError(
            "A plan's inputs must give shapes and dtypes. Got something else (plan.inputs). Write plan.to_json()."
        ) from None
    try:
        forward_on_meta(thin, args, kwargs)
    except Exception as error:
        other = _as_weights(thin, args, kwargs) or (args, kwargs)
        for forward in (forward_on_meta, _forward_on_numbers):
            if _runs(forward, thin, *other):
                return
            if _runs(forward, model, *other):
                break
        else:
            return
        raise SlimError(
            f"The thin network must run. Got {type(error).__name__}: {error} (module {_failing(thin, args, kwargs)}). "
            "Its forward seems to fix a width: compute it from the tensor's shape, or pass the layer in ignore."
        ) from error


def _runs(forward: Callable[..., Any], network: nn.Module, args: Any, kwargs: Any) -> bool:
    with suppress(Exception):
        forward(network, args, kwargs)
        return True
    return False


def _forward_on_numbers(thin: nn.Module, args: Any, kwargs: Any) -> None:
    """An eval forward on random numbers in the shapes of ``args``: what suppresses boxes knows no shapes before."""
    weights = list(thin.parameters())
    if any(weight.is_meta for weight in weights):
        raise ValueError("no weights")
    device = weights[0].device if weights else None

    def numbers(tensor: Tensor) -> Tensor:
        found = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        return found.uniform_() if found.is_floating_point() else found

    with torch.inference_mode(False), torch.no_grad(), temporary_state(thin, meta=False, training=False):
        args, kwargs = tree_map_only(Tensor, numbers, (args, kwargs))
        thin(*args, **kwargs)


def _as_weights(thin: nn.Module, args: Any, kwargs: Any) -> Any:
    """The inputs in the precision of the weights, which may be another than the plan was made in; None where it is."""
    floats = {p.dtype for p in thin.parameters() if p.is_floating_point()}
    given = {t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()}
    if len(floats) != 1 or not given - floats:
        return None
    (dtype,) = floats
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))


def _failing(thin: nn.Module, args: Any, kwargs: Any) -> str:
    """The innermost module whose forward raises; it runs again, as hooks on every module take their time."""
    failed: list[nn.Module] = []
    with suppress(Exception):
        forward_on_meta(thin, args, kwargs, module_stack([], failed))
    names = {id(module): name for name, module in thin.named_modules()}
    return names.get(id(failed[-1]), "") or "forward" if failed else "forward"
