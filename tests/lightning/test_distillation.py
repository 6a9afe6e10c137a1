"""A teacher's part in any module's loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from slim import SlimError
from slim.lightning import ChannelPruning, Distillation
from slim.lightning.distillation import soft_targets
from slim.recovery import distillation_loss

from .modules import Plain, convnet, fit, images, same


def test_the_loss_is_the_mixture_of_both() -> None:
    """One step by hand, on the logits and labels of a batch."""
    module, net, teacher = Plain(), convnet(), convnet().eval()
    teacher[8].weight.data.mul_(3)
    fit(module, Distillation(teacher, temperature=2.0, weight=0.3), epochs=1, limit_train_batches=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = next(iter(images()))
    logits = net.train()(x)
    with torch.no_grad():
        taught = teacher(x)
    distillation_loss(logits, taught, y, temperature=2.0, weight=0.3).backward()
    optimizer.step()
    assert same(module.net, net)
    maps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    pixels = [each.permute(0, 2, 3, 1).reshape(-1, 3) for each in maps]
    assert torch.allclose(soft_targets(*({"out": each} for each in maps)), soft_targets(*pixels))


class Twice(Plain):
    """Two views through one network, a dict for a result."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        a, b = self(x), self(x.flip(-1))
        return {"loss": F.cross_entropy(a + b, y), "extra": a.detach()}


@pytest.mark.parametrize("compiled", [False, True])
def test_it_lives_through_a_cut_and_stays_out_of_checkpoints(compiled: bool, tmp_path: Path) -> None:
    module = Twice()
    teacher = copy.deepcopy(module.net)
    untouched = copy.deepcopy(teacher)
    if compiled:
        module.net = torch.compile(module.net, backend="eager")  # type: ignore[assignment]
    seen: list[Tensor] = []

    def distance(student: Tensor, taught: Tensor) -> Tensor:
        seen.append(taught)
        return F.mse_loss(student, taught)

    distillation = Distillation(teacher, loss=distance, weight=1.0)
    run = fit(module, distillation, ChannelPruning(ratio=0.5, at=1), ModelCheckpoint(tmp_path, filename="last"))
    assert len(seen) == 12
    assert all(not taught.requires_grad for taught in seen)
    assert same(teacher, untouched)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == module.state_dict().keys()
    assert sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"]) == 10
    assert "training_step" not in vars(module)
    assert not run.lightning_module.net._forward_hooks
    assert distillation.value > 0


def test_two_teachers_both_count_and_both_leave() -> None:
    counts = [0, 0]

    def counting(index: int) -> Any:
        def distance(student: Tensor, taught: Tensor) -> Tensor:
            counts[index] += 1
            return F.mse_loss(student, taught)

        return distance

    module = Plain()
    for _ in range(2):
        fit(module, *(Distillation(convnet(), loss=counting(index)) for index in range(2)), epochs=1)
        assert "training_step" not in vars(module)
    assert counts == [6, 6]


def test_a_validation_that_calls_the_training_step_is_not_taught() -> None:
    class Same(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    module = Same()
    run = fit(module, Distillation(convnet(), weight=1.0), val=images(), epochs=1)
    module.eval()
    losses = torch.stack([F.cross_entropy(module(x), y).detach() for x, y in images()])
    assert run.callback_metrics["val_loss"] == pytest.approx(float(losses.mean()))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_the_student_may_train_in_another_precision(precision: Any) -> None:
    teacher, module = convnet(), Plain()
    run = fit(module, Distillation(teacher), epochs=1, precision=precision)
    assert run.global_step == 3 and teacher[0].weight.dtype == torch.float32


def test_misuse_is_one_line() -> None:
    class Manual(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    class Unused(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.other = convnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x)

    plain = Plain()
    for misuse, words in (
        (lambda: Distillation(3), "teacher"),  # type: ignore[arg-type]
        (lambda: Distillation(convnet(), weight=2), "weight=2"),
        (lambda: Distillation(convnet(), weight="x"), "weight='x'"),  # type: ignore[arg-type]
        (lambda: Distillation(convnet(), weight=True), "weight=True"),
        (lambda: Distillation(convnet(), temperature=0), "temperature=0"),
        (lambda: Distillation(convnet(), temperature="x"), "temperature='x'"),  # type: ignore[arg-type]
        (lambda: Distillation(convnet(), loss=5), "loss=5"),  # type: ignore[arg-type]
        (lambda: Distillation(convnet(), network=5), "network=5"),  # type: ignore[arg-type]
        (lambda: fit(Plain(), Distillation(convnet(), loss=lambda a, b: a - b)), r"shape \(8, 3\)"),
        (lambda: fit(Plain(), Distillation(convnet(), loss=lambda a, b: None)), "NoneType"),  # type: ignore[arg-type,return-value]
        (lambda: fit(Manual(), Distillation(convnet())), "automatic_optimization"),
        (lambda: fit(Unused(), Distillation(convnet(), network="net")), "does not call it"),
        (lambda: fit(plain, Distillation(plain.net)), "a part of it"),
        (lambda: fit(Plain(), Distillation(convnet(classes=4))), "one shape"),
        (lambda: soft_targets(torch.ones(2, 1), torch.zeros(2, 1)), "two classes or more"),
    ):
        with pytest.raises(SlimError, match=words) as caught:
            misuse()
        assert "\n" not in str(caught.value)
