"""The penalty acts once per optimizer step, outside accumulation, clipping and scaling."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import slim
from slim.module import Classifier
from slim.pipeline.failures import quiet
from slim.sparsity import build

LAM, LR = 0.5, 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def batches(count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 8, 8, generator=chance), torch.randint(0, 3, (16,), generator=chance)) for _ in range(count)
    ]


class Steps(pl.Callback):
    """Gamma after every optimizer step."""

    def __init__(self) -> None:
        self.gammas: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step > len(self.gammas):
            self.gammas.append(pl_module.network[1].weight.detach().clone())


def fit(lam: float, law: str = "l1", **options: Any) -> tuple[list[torch.Tensor], Classifier]:
    net = network()
    graph = slim.trace(net, torch.zeros(1, 1, 8, 8))
    module = Classifier(
        net,
        optimizer=lambda parameters: torch.optim.SGD(parameters, LR),
        rate=lambda step: 1.0,
        total_steps=8,
        penalty=build(law, lam=lam),
        graph=graph,
    )
    steps = Steps()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[steps], **options,
        ).fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))  # fmt: skip
    return steps.gammas, module


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_first_step_adds_lam_times_sign(accumulate: int, clip: float | None) -> None:
    """d(penalty)/d(gamma) = lam * sign(gamma): the first step differs from one without penalty by lr * lam * sign."""
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    with_penalty, _ = fit(LAM, **options)
    without, _ = fit(0.0, **options)
    assert len(with_penalty) == 8 // accumulate
    torch.testing.assert_close(without[0] - with_penalty[0], torch.full((4,), LR * LAM), rtol=1e-4, atol=1e-6)


def test_clipping_leaves_the_penalty_whole() -> None:
    """With the task's gradient clipped to almost nothing, gamma still falls by lr * lam in every step."""
    gammas, _ = fit(LAM, gradient_clip_val=1e-6)
    start = torch.ones(4)
    for step, gamma in enumerate(gammas[:6], 1):
        torch.testing.assert_close(gamma, start - step * LR * LAM, rtol=0, atol=1e-4)


def test_bf16_has_the_same_trajectory() -> None:
    exact, _ = fit(LAM)
    rounded, _ = fit(LAM, precision="bf16-mixed")
    for a, b in zip(exact, rounded, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


def test_fp16_with_a_scaler_has_the_same_trajectory() -> None:
    """The scaler multiplies the loss, not the penalty."""
    from pytorch_lightning.plugins import MixedPrecision

    class Scaled(MixedPrecision):
        """fp16's scaler over fp32 arithmetic: the CPU has no fp16 convolutions to speak of."""

        def forward_context(self) -> Any:
            import contextlib

            return contextlib.nullcontext()

    exact, _ = fit(LAM)
    plugin = Scaled("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    scaled, _ = fit(LAM, plugins=[plugin])
    assert len(exact) == len(scaled)
    for a, b in zip(exact, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_proximal_laws_act_after_the_step() -> None:
    gammas, _ = fit(2.0, "prox")
    assert (gammas[-1] == 0).any(), "exact zeros"


def test_every_parameter_is_in_the_optimizer_once() -> None:
    _, module = fit(0.1)
    optimizer = module.trainer.optimizers[0]
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.network.parameters())
