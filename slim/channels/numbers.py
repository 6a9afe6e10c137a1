"""Numbers in tensors of one element: what a forward computes from a width (``sqrt(tensor(C))``) before it scales by it.

A meta tensor has no value. Where a forward makes a tensor from a number, a real twin goes along, and operations on such
tensors alone are done to the twins too.
"""

from __future__ import annotations

from typing import Any

import torch

MAKERS = frozenset([torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor])
FILLS = {"full": 1, "new_full": 2, "scalar_tensor": 0, "full_like": 1, "fill": 1, "fill_": 1}  # position of the number


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The value of a tensor of one element that is not the network's own; None where it has none."""
    known: torch.Tensor | None = getattr(tensor, "_slim_value", None)
    if known is not None or tensor.is_meta or tensor.numel() != 1 or tensor.is_complex():
        return known
    return None if hasattr(tensor, "_slim_param") or hasattr(tensor, "_slim_ids") else tensor


def note_made(function: Any, args: Any, out: Any) -> None:
    """A tensor was made from data: keep the number, if it is one."""
    if function in MAKERS and isinstance(out, torch.Tensor) and out.is_meta and out.numel() == 1:
        data = args[1] if function is torch.Tensor.new_tensor else args[0]
        if isinstance(data, (int, float)):
            out._slim_value = torch.tensor(data)  # type: ignore[attr-defined]


def note_value(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An operation has run on meta tensors: do it to the twins, if all its tensors have one."""
    if not isinstance(out, torch.Tensor) or not out.is_meta or out.numel() != 1 or hasattr(out, "_slim_value"):
        return
    position = FILLS.get(func.overloadpacket.__name__)
    if position is not None:
        number = args[position]
        if isinstance(number, (int, float)):
            out._slim_value = torch.tensor(number)  # type: ignore[attr-defined]
        return
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    values = [value_of(t) for t in tensors]
    if not tensors or any(v is None for v in values) or torch.Tag.nondeterministic_seeded in func.tags:
        return
    twins = iter(values)
    options = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "layout")}
    try:
        twin = func(*(next(twins) if isinstance(a, torch.Tensor) else a for a in args), **options)
    except Exception:  # what cannot be done to a number has no value
        return
    if isinstance(twin, torch.Tensor) and not twin.is_meta:
        out._slim_value = twin  # type: ignore[attr-defined]
