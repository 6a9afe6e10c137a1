"""Work beside a training: generators and modes are put back, so that the training goes on as if nothing had been."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def isolated(network: nn.Module, seed: int) -> Iterator[None]:
    """Inside, the generators of Python, NumPy and torch are seeded; afterwards they and all modes are as before."""
    modes = [(module, module.training) for module in network.modules()]
    devices = sorted({t.device.index for t in (*network.parameters(), *network.buffers()) if t.device.type == "cuda"})
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        for module, training in modes:
            module.training = training
