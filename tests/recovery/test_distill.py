"""The distillation loss against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slim.errors import SlimError
from slim.recovery import distillation_loss


def test_it_is_hintons_formula():
    torch.manual_seed(0)
    student, teacher, target = torch.randn(5, 7), torch.randn(5, 7), torch.randint(0, 7, (5,))
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 0.3 * F.cross_entropy(student, target) + 0.7 * 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, target, temperature=3.0, weight=0.7), expected)
    plain = distillation_loss(student, teacher, target, weight=0.0)
    torch.testing.assert_close(plain, F.cross_entropy(student, target))


def test_no_gradient_into_the_teacher():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    distillation_loss(student, teacher, torch.tensor([0, 1])).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_its_slope_is_the_softened_difference():
    """T^2 keeps the soft gradient near (student - teacher) / classes for large T, the paper's section 2.1."""
    student, teacher = (
        torch.randn(1, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(1, 4, dtype=torch.float64),
    )
    distillation_loss(student, teacher, torch.tensor([0]), temperature=1e3, weight=1.0).backward()
    centred = (student.detach() - student.detach().mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, centred / 4, rtol=1e-2, atol=1e-3)


def test_mistakes():
    logits = torch.zeros(1, 2)
    for bad in ({"temperature": 0.0}, {"weight": 1.5}):
        with pytest.raises(SlimError, match=r"Set finetune\.distill"):
            distillation_loss(logits, logits, torch.tensor([0]), **bad)
