"""Recovery: what makes the thin network right without training, and the loss that helps it when it trains."""

from __future__ import annotations

from slim.recovery.absorb import absorb
from slim.recovery.distill import Distillation, distillation_loss
from slim.recovery.least_squares import Refit, least_squares
from slim.recovery.recalibrate import recalibrate
from slim.recovery.recover import Recovered, Step, recover

__all__ = [
    "Distillation",
    "Recovered",
    "Refit",
    "Step",
    "absorb",
    "distillation_loss",
    "least_squares",
    "recalibrate",
    "recover",
]
