"""The penalty acts once per optimizer step, outside accumulation, clipping and scaling."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

import slim
from slim.module import Classifier
from slim.runs.failures import quiet
from slim.sparsity import build

LAM, LR, MOMENTUM = 0.02, 0.1, 0.9


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


class Scaled(MixedPrecision):
    """fp16's scaler (exact: a power of two) over fp32 arithmetic: CPUs have no fp16 to speak of."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    def forward_context(self) -> Any:
        return contextlib.nullcontext()


PRECISIONS: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"precision": "bf16-mixed"}, "fp16": {"scaled": True}}


def fit(
    lam: float,
    law: str = "l1",
    data: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
    scaled: bool = False,
    net: nn.Module | None = None,
    **options: Any,
) -> tuple[list[torch.Tensor], Classifier]:
    net = network() if net is None else net
    graph = slim.trace(net, torch.zeros(1, 1, 8, 8))
    module = Classifier(
        net,
        optimizer=lambda parameters: torch.optim.SGD(parameters, LR, momentum=MOMENTUM),
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
            enable_model_summary=False, callbacks=[steps], plugins=[Scaled()] if scaled else [], **options,
        ).fit(module, torch.utils.data.DataLoader(data or batches(), batch_size=None))  # fmt: skip
    return steps.gammas, module


def by_hand(lam: float, micro: list[list[tuple[torch.Tensor, torch.Tensor]]], clip: float | None) -> list[torch.Tensor]:
    """The same training without Lightning, autocast, scaler or our hooks, in double: gamma after every step."""
    net = network().double()
    parameters, gamma = list(net.parameters()), net[1].weight
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    found = []
    for group in micro:
        for parameter in parameters:
            parameter.grad = None
        for x, y in group:
            (F.cross_entropy(net(x.double()), y) / len(group)).backward()
        norm = torch.sqrt(sum(parameter.grad.pow(2).sum() for parameter in parameters))
        factor = 1.0 if clip is None else min(1.0, clip / (float(norm) + 1e-6))
        for parameter, speed in zip(parameters, velocity, strict=True):
            gradient = parameter.grad * factor + (lam * torch.sign(parameter.data) if parameter is gamma else 0.0)
            speed.mul_(MOMENTUM).add_(gradient)
            parameter.data.sub_(LR * speed)
        found.append(gamma.detach().clone())
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_trajectory_is_the_one_by_hand(precision: str, accumulate: int, clip: float | None) -> None:
    """Task and penalty together, over all steps, up to the rounding of the precision."""
    data = batches(32)
    gammas, _ = fit(LAM, data=data, accumulate_grad_batches=accumulate, gradient_clip_val=clip, **PRECISIONS[precision])
    micro = [data[start : start + accumulate] for start in range(0, len(data), accumulate)]
    expected = by_hand(LAM, micro, clip)
    assert len(gammas) == len(expected) == 32 // accumulate
    close = 3e-3 if precision == "bf16" else 1e-5
    for step, (gamma, wanted) in enumerate(zip(gammas, expected, strict=True)):
        assert float((gamma.double() - wanted).abs().max()) < close, step
    free = by_hand(0.0, micro, clip)
    assert float((free[-1] - expected[-1]).abs().max()) > 0.05, "the penalty is what is seen"
    assert clip is None or float((by_hand(LAM, micro, None)[-1] - expected[-1]).abs().max()) > 2 * close, "it clips"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_penalty_alone_moves_gamma_the_same_way(precision: str, accumulate: int, clip: float | None) -> None:
    """With a task that does not care, every setting gives the same trajectory, bit for bit, and it is the formula's."""
    net = network()
    nn.init.zeros_(net[5].weight)  # nothing of the loss gets back to gamma
    net[5].weight.requires_grad_(False)
    gammas, _ = fit(
        LAM, net=net, data=batches(8 * accumulate), accumulate_grad_batches=accumulate, gradient_clip_val=clip,
        **PRECISIONS[precision],
    )  # fmt: skip
    gamma, speed = torch.ones(4), torch.zeros(4)
    assert len(gammas) == 8
    for found in gammas:
        speed = MOMENTUM * speed + LAM * torch.sign(gamma)
        gamma = gamma - LR * speed
        assert torch.equal(found, gamma)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_first_step_adds_lam_times_sign(accumulate: int, clip: float | None) -> None:
    """d(penalty)/d(gamma) = lam * sign(gamma): the first step differs from one without penalty by lr * lam * sign."""
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    with_penalty, _ = fit(LAM, **options)
    without, _ = fit(0.0, **options)
    assert len(with_penalty) == 8 // accumulate
    torch.testing.assert_close(without[0] - with_penalty[0], torch.full((4,), LR * LAM), rtol=1e-4, atol=1e-6)


def test_proximal_laws_act_after_the_step() -> None:
    gammas, _ = fit(2.0, "prox")
    assert (gammas[-1] == 0).any(), "exact zeros"


def test_every_parameter_is_in_the_optimizer_once() -> None:
    _, module = fit(0.1)
    optimizer = module.trainer.optimizers[0]
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.network.parameters())


class Seen(pl.Callback):
    """Gamma in every validation, and at every start of a training batch."""

    def __init__(self) -> None:
        self.validated: list[torch.Tensor] = []
        self.trained: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.validated.append(pl_module.network[1].weight.detach().clone())

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.trained.append(pl_module.network[1].weight.detach().clone())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        body = {"state_dict": pl_module.state_dict()}
        pl_module.on_save_checkpoint(body)
        self.kept.append(body["state_dict"]["network.1.weight"])


def gated(validate: bool) -> tuple[Seen, Classifier]:
    net = network()
    module = Classifier(
        net,
        optimizer=lambda parameters: torch.optim.SGD(parameters, LR),
        rate=lambda step: 1.0,
        total_steps=24,
        penalty=build("l0", lam=1e-2, gate_lr=0.05, open_at_start=0.6),
        graph=slim.trace(net, torch.zeros(1, 1, 8, 8)),
    )
    seen = Seen()
    data = torch.utils.data.DataLoader(batches(), batch_size=None)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, callbacks=[seen],
        ).fit(module, data, data if validate else None)  # fmt: skip
    return seen, module


def test_drawn_gates_stay_out_of_validation_and_files() -> None:
    """Validation and checkpoints see the deterministic gates; training draws on as if nobody had looked."""
    looked, module = gated(True)
    plain, other = gated(False)
    for epoch, kept in enumerate(looked.kept):
        # Eight validation batches an epoch, all on one network, which is the one in the file.
        assert all(torch.equal(gamma, kept) for gamma in looked.validated[8 * epoch : 8 * epoch + 8])
    assert not torch.equal(looked.trained[8], looked.kept[0]), "the next batch sees drawn gates"
    assert all(torch.equal(a, b) for a, b in zip(looked.trained, plain.trained, strict=True))
    assert torch.equal(module.network[1].weight, other.network[1].weight)
    assert torch.equal(module.network[1].weight, looked.kept[-1]), "the phase ends settled"
