"""Fine-tune with the network before the cut as teacher. Hinton et al. 2015, arXiv:1503.02531."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim.errors import SlimError


@dataclass(frozen=True)
class Distillation:
    """A teacher, and how much it is listened to; see :func:`distillation_loss`."""

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.5

    def losses(
        self, student: Tensor, teacher: Tensor, target: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The loss ``()``, and the teacher's part T^2 * KL ``()`` of it before it is weighted.

        Args:
            student: logits ``(B, C)``.
            teacher: logits ``(B, C)``; no gradient flows into them.
            target: labels ``(B,)`` int64.
            label_smoothing: of the cross entropy.
        """
        hard = F.cross_entropy(student, target, label_smoothing=label_smoothing)
        soft = self.temperature**2 * F.kl_div(
            F.log_softmax(student / self.temperature, dim=1),
            F.log_softmax(teacher.detach() / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return torch.lerp(hard, soft, self.weight) if self.weight else hard, soft


def distillation_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float = 4.0, weight: float = 0.5,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """(1 - weight) * cross entropy + weight * T^2 * KL(teacher || student), both softened by T.

    Args:
        student: logits ``(B, C)``.
        teacher: logits ``(B, C)``; no gradient flows into them.
        target: labels ``(B,)`` int64.
        temperature: T > 0; the T^2 keeps the soft gradients on the scale of the hard ones (section 2 of the paper).
        weight: in [0, 1]; 0 is plain cross entropy.
        label_smoothing: of the cross entropy.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(logits, logits, torch.tensor([0]), weight=1.0))
    0.0
    """
    if not temperature > 0:
        raise SlimError(f"temperature must be > 0. Got temperature={temperature}. Set finetune.distill.temperature.")
    if not 0 <= weight <= 1:
        raise SlimError(f"distillation weight must be in [0, 1]. Got weight={weight}. Set finetune.distill.weight.")
    return Distillation(nn.Identity(), temperature, weight).losses(student, teacher, target, label_smoothing)[0]
