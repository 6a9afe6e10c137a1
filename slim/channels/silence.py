"""Which activations are exactly zero on every channel that a mask takes.

A masked row of a weight, with its bias or its scale and shift, makes zeros, and so does what maps 0 to 0. A sum over
such channels is the same with and without them, so that they may go. Where an operation is not known to keep zeros
(``sigmoid``, adding a number), the answer is no.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from slim.channels.branches import PASSES_ZERO
from slim.channels.ids import Shadow, pad_rank, varying

_UNARY = PASSES_ZERO - {"div"} | {
    *("abs", "sqrt", "square", "selu", "celu", "mish", "erf", "sin", "linalg_vector_norm", "hardshrink", "amin"),
    *("softshrink", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "avg_pool3d", "flatten", "unflatten", "narrow"),
    *("swapaxes", "movedim", "mT", "pixel_shuffle", "im2col", "repeat", "zero", "lift_fresh", "squeeze", "amax"),
    "chunk",
}
_SAY_WHERE = ("max_pool2d_with_indices", "max", "min")
"""Their second results are positions, of what is zero, too."""
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm")


def is_silent(tensor: Any) -> bool:
    """Whether the tensor is zero wherever one of its channels is masked; parameters and buffers are."""
    return bool(getattr(tensor, "_slim_silent", hasattr(tensor, "_slim_param")))


def note_silence(name: str, args: Sequence[Any], out: Any) -> bool:
    """Mark the results of an operation.

    Returns:
        False when an operation in place made a silent tensor another: what shares its memory is not known then.
    """
    stays = _stays_silent(name.rstrip("_") if name.endswith("_") else name, args, out)
    before = bool(args) and is_silent(args[0]) and bool(getattr(args[0], "_slim_ids", ()))
    for t in out if isinstance(out, (list, tuple)) else (out,):
        if isinstance(t, torch.Tensor):
            where = name in _SAY_WHERE and t is not out and t is not out[0]
            t._slim_silent = stays and not where  # type: ignore[attr-defined]
    return not (name.endswith("_") and not name.startswith("_") and before and not stays)


def _stays_silent(name: str, args: Sequence[Any], out: Any) -> bool:
    first = args[0] if args else None
    if name in _UNARY:
        return is_silent(first)
    if name in ("max", "min"):
        return is_silent(first) and not any(isinstance(a, torch.Tensor) for a in args[1:])
    if name in ("hardtanh", "clamp"):
        low, high = (*args[1:3], *((-1, 1) if name == "hardtanh" else (None, None)))[:2]
        return is_silent(first) and _at_most(low, 0) and _at_most(0, high)
    if name == "clamp_min":
        return is_silent(first) and _at_most(args[1], 0)
    if name == "pow":
        return is_silent(first) and isinstance(args[1], (int, float)) and args[1] > 0
    if name == "constant_pad_nd":
        return is_silent(first) and (len(args) < 3 or args[2] == 0)
    if name in _BATCH_NORMS:  # a masked scale and shift make zeros of anything
        return all(hasattr(t, "_slim_param") for t in args[1:3])
    if not isinstance(out, torch.Tensor):
        return False
    shadow: Shadow = getattr(out, "_slim_ids", ())
    patterns = {varying(layer) for layer in shadow}
    if name in ("convolution", "_convolution"):
        channel = out.ndim - args[1].ndim + 1
        own = [hasattr(t, "_slim_param") for t in args[1:3] if t is not None]
        return all(own) and patterns <= {(channel,)}
    if name in ("mm", "bmm", "linear", "addmm"):
        left, right = args[1:3] if name == "addmm" else args[:2]
        bias = args[0] if name == "addmm" else args[2] if len(args) > 2 else None
        columns = {(out.ndim - 1,)}
        if bias is not None and not (is_silent(bias) and patterns <= columns):
            return False
        return (is_silent(right) or not patterns & columns) and (is_silent(left) or patterns <= columns)
    if name in ("cat", "concat"):
        d = args[1] % out.ndim if len(args) > 1 else 0
        return patterns <= {(d,)} and all(is_silent(t) or not getattr(t, "_slim_ids", ()) for t in args[0])
    return name in ("mul", "div", "add", "sub") and _product_or_sum(name, args, out.ndim, patterns)


def _product_or_sum(name: str, args: Sequence[Any], rank: int, patterns: set[tuple[int, ...]]) -> bool:
    """A product is zero where one factor is, a sum where all summands are, along every axis that carries channels."""
    operands = [a for a in args[:2] if isinstance(a, torch.Tensor) and a.ndim]
    carried = [_patterns(a, rank) if is_silent(a) else set() for a in operands]
    if name == "mul":
        return all(any(pattern in mine for mine in carried) for pattern in patterns)
    if name == "div":
        meets = len(operands) > 1 and {d for p in _patterns(operands[1], rank) for d in p}
        first = isinstance(args[0], torch.Tensor) and is_silent(args[0]) and patterns <= _patterns(args[0], rank)
        return first and not meets
    return len(operands) == 2 and all(patterns <= mine for mine in carried)


def _patterns(tensor: torch.Tensor, rank: int) -> set[tuple[int, ...]]:
    """The axes, in a result of that rank, along which the channels of an operand vary."""
    shadow: Shadow = getattr(tensor, "_slim_ids", ())
    return {varying(layer) for layer in pad_rank(shadow, rank)}


def _at_most(low: Any, high: Any) -> bool:
    return (
        low is None
        or high is None
        or (isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high)
    )
