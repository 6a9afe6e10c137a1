"""Torch-Pruning's BNScalePruner in our loop: its own regularization, its own ranking and cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slim.channels import count_macs


class BNScale:
    """The part of `slim.sparsity.Penalty` that the loop calls, around a Torch-Pruning pruner.

    Args:
        model: its convolutions are cut in place by `cut`.
        example: input ``(1, 3, H, W)``.
        reg: strength of the L1 term on gamma.
        steps: the pruner reaches 100% of the channels in so many equal parts; `cut` stops at the budget.
    """

    def __init__(self, model: nn.Module, example: Tensor, reg: float, steps: int = 200) -> None:
        import torch_pruning as tp

        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        self.model, self.example, self.steps = model, example, steps
        self.pruner = tp.pruner.BNScalePruner(
            model, example, importance=tp.importance.BNScaleImportance(), reg=reg, global_pruning=True,
            pruning_ratio=0.95, iterative_steps=steps, ignored_layers=[last],
        )  # fmt: skip

    def attach(self, model: nn.Module, graph: Any, total_steps: int) -> None:
        """Nothing to find: the pruner has looked."""

    def before_step(self, lr: float) -> None:
        """gamma.grad += reg * sign(gamma), by the pruner."""
        self.pruner.regularize(self.model)

    def after_step(self, lr: float) -> None:
        """Nothing."""

    def cut(self, macs: float, optimizer: torch.optim.Optimizer) -> None:
        """Prune step by step to the budget; parameters are new objects, so the optimizer begins without momentum."""
        budget = macs * count_macs(self.model, self.example)
        for _ in range(self.steps):
            self.pruner.step()
            if count_macs(self.model, self.example) <= budget:
                break
        optimizer.state.clear()
        optimizer.param_groups[0]["params"] = list(self.model.parameters())
