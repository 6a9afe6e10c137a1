"""Numbers in tensors that a forward makes: what it computes from a width (``sqrt(tensor(C))``) before it scales by it.

A meta tensor has no value. Where a forward makes a tensor from numbers alone (``arange(6) / C``), a real twin goes
along, and operations on such tensors alone are done to the twins too.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.channels.branches import operation_name

MAKERS = frozenset([torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor])
FILLS = {"full": 1, "new_full": 2, "scalar_tensor": 0, "full_like": 1, "fill": 1, "fill_": 1}  # position of the number
_NEW = {"new_zeros": 0, "new_ones": 1}
MOST = 2**16
"""Elements of a tensor whose numbers are followed."""


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The value of a tensor that is not the network's own; None where it has none, or too many numbers."""
    known: torch.Tensor | None = getattr(tensor, "_slim_value", None)
    if known is not None or tensor.is_meta or tensor.numel() > MOST or tensor.is_complex():
        return known
    own = hasattr(tensor, "_slim_param") or hasattr(tensor, "_slim_ids")
    return None if own or tensor.layout is not torch.strided else tensor


def as_number(value: torch.Tensor) -> float:
    """The number that all elements are; where they differ a checksum, in which an axis that is expanded counts once."""
    parts = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value.detach()
    once = parts[tuple(slice(0, 1) if step == 0 else slice(None) for step in parts.stride())].cpu().double().numpy()
    same = once.size and (once == once.flat[0]).all()
    return float(once.flat[0] if same else zlib.crc32(once.tobytes()))


def note_made(function: Any, args: Any, out: Any) -> None:
    """A tensor was made from data: keep the numbers."""
    if function in MAKERS and isinstance(out, torch.Tensor) and out.is_meta and out.numel() <= MOST:
        data = args[1:2] if function is torch.Tensor.new_tensor else args[:1]
        if data and not isinstance(data[0], torch.Tensor):
            out._slim_value = torch.tensor(data[0], dtype=out.dtype)  # type: ignore[attr-defined]


def note_value(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An operation has run on meta tensors: do it to the twins, if all its tensors have one."""
    if not isinstance(out, torch.Tensor) or not out.is_meta or out.numel() > MOST:
        return
    name = operation_name(func)
    if "empty" in name or torch.Tag.nondeterministic_seeded in func.tags:
        return
    twin = _on_twins(func, args, kwargs)
    if twin is None and not getattr(out, "_slim_ids", ()):
        twin = _filled(name, args, out)
    if twin is not None:
        out._slim_value = twin  # type: ignore[attr-defined]
    elif hasattr(out, "_slim_value"):
        del out._slim_value  # written to in place


def _filled(name: str, args: Any, out: torch.Tensor) -> torch.Tensor | None:
    """What a tensor that had no value, or one that is like such, is filled with."""
    source: Any = None
    if name == "copy_":
        source = value_of(args[1])
    elif out.numel() == 1 or name == "fill_" or name.startswith("new_"):
        number = args[FILLS[name]] if name in FILLS else _NEW.get(name)
        source = torch.tensor(number) if isinstance(number, (int, float)) else None
    return None if source is None else source.to(out.dtype).expand(out.shape).clone()


def _on_twins(func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The operation's result on the values of its tensors; None where they or it have none."""
    if any(value_of(t) is None for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)):
        return None
    options = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "layout")}
    twins, options = tree_map_only(torch.Tensor, value_of, (tuple(args), options))
    if twins and twins[0] is args[0] and operation_name(func).endswith("_"):
        twins = (twins[0].clone(), *twins[1:])  # the forward's own tensor
    try:
        twin = func(*twins, **options)
    except Exception:  # what cannot be done to numbers has no value
        return None
    return twin if isinstance(twin, torch.Tensor) and not twin.is_meta else None
