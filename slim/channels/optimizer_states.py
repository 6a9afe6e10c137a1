"""States of an optimizer that surgery cannot slice: what is not shaped like its parameter starts anew."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from slim.channels.plan import Plan


def nested(optimizer: Any) -> list[Any]:
    """An optimizer and those that it holds, as SAM, Lookahead and wrappers do; the last one steps parameters.

    Each has states of the same parameters.
    """
    inside = [value for value in getattr(optimizer, "__dict__", {}).values() if isinstance(value, Optimizer)]
    return [optimizer, *(each for value in inside for each in nested(value))]


def forget_unsliceable(optimizer: Optimizer, model: nn.Module, plan: Plan) -> list[str]:
    """Drop the states that do not fit the thin network and cannot be made to: factors (Adafactor), histories (LBFGS).

    Args:
        optimizer: Its ``state`` changes.
        model: Before the surgery.
        plan: Of the surgery.

    Returns:
        A line for every parameter whose state is gone.
    """
    flat: Any = optimizer
    if hasattr(flat, "_numel_cache") and not plan.is_identity:  # LBFGS: one vector of all parameters
        flat._numel_cache = None
        known = bool(flat.state)
        flat.state.clear()
        return ["The optimizer's history of all parameters cannot be cut and starts anew."] if known else []
    cut = {name for name, _ in plan.axes}
    notes = []
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {}) if name in cut else {}
        odd = [key for key, value in state.items() if _cannot_be_sliced(value, parameter)]
        if odd:
            del optimizer.state[parameter]
            notes.append(f"The optimizer's {', '.join(odd)} of {name} cannot be cut and starts anew.")
    return notes


def _cannot_be_sliced(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape
