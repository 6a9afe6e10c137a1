"""MACs by PyTorch's FLOP counter (MACs = FLOPs / 2), the reference for ours, and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from slim.channels.check import forward_on_meta
from slim.channels.meta_forward import call_arguments, meta_like, temporary_state, tensors_in, unwrap


def count_macs(model: nn.Module, example_inputs: Any) -> int:
    """Multiply-accumulates of one eval forward on ``example_inputs``, by ``torch.utils.flop_counter``."""
    model = unwrap(model)
    args, kwargs = call_arguments(example_inputs)
    meta_args, meta_kwargs = tree_map_only(torch.Tensor, meta_like, (args, kwargs))
    counter = FlopCounterMode(display=False)
    try:
        forward_on_meta(model, meta_args, meta_kwargs, counter)
    except Exception:
        if any(t.is_meta for t in (*tensors_in((args, kwargs)), *model.parameters())):
            raise
        counter = FlopCounterMode(display=False)  # a forward that asks for values
        with torch.no_grad(), temporary_state(model, meta=False, training=False), counter:
            model(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def count_params(model: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())
