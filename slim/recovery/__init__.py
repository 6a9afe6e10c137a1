"""Recovery: what makes the thin network right without training, and the loss that helps it when it trains."""

from __future__ import annotations

from slim.recovery.absorb import absorb
from slim.recovery.distill import Distillation, distillation_loss
from slim.recovery.recalibrate import recalibrate

__all__ = ["Distillation", "absorb", "distillation_loss", "recalibrate"]
