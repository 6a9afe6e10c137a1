"""What each kind of operation does to channel ids. One function per kind; nothing here names an architecture.

A rule receives the :class:`~slim.channels.tracer.Tracer`, the operation, its arguments (tensors carry their shadow) and
its result, and gives the result its shadow. Rules call a few methods of the tracer: ``join`` (these ids go together),
``pin`` (these ids cannot go), ``assume`` (true unless the network hard-codes a width: checked by the width probe),
``convolve`` and ``multiply`` (contractions). An operation without a rule pins what it touches and is reported by name.
"""

from __future__ import annotations

from typing import Any

from slim.channels.branches import operation_name
from slim.channels.rules import contractions, elementwise, indexing, movement, norms, spatial, windows
from slim.channels.rules.registry import RULES, Rule
from slim.channels.tracer import is_pointwise


def find_rule(func: Any) -> Rule | None:
    """The rule of an operation: by name, by PyTorch's pointwise tag, or by the shape of its signature."""
    name = operation_name(func)
    found = RULES.get(name)
    if found is not None:
        return found
    if name.endswith("_") and name[:-1] in RULES:
        return RULES[name[:-1]]
    if is_pointwise(func):
        return elementwise.pointwise
    if "::" in name:  # another library's: a name says nothing of what it does
        return None
    if "batch_norm" in name and "backward" not in name:
        return norms.batch_norm
    if "scaled_dot_product" in name:
        return contractions.attention
    if name.endswith("_like"):
        return elementwise.same_shape
    if "pool" in name or "upsample" in name or name.startswith(("reflection_pad", "replication_pad", "_upsample")):
        return spatial.spatial
    arguments = {a.name for a in func._schema.arguments}
    if {"dim", "keepdim"} <= arguments or name in spatial.STATISTICS:
        return spatial.reduction
    return None


__all__ = ["find_rule", "indexing", "movement", "windows"]
