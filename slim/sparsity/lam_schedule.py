"""Schedule of lam over a phase: linear warm-up, then constant, linear, cosine or rising."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slim.errors import SlimError, nearest

SCHEDULES = ("constant", "linear", "cosine", "rising")


@dataclass(frozen=True)
class LamSchedule:
    """Lam at every step of a phase.

    Attributes:
        lam: full value, >= 0.
        warmup: fraction of the phase, in [0, 1), over which lam rises linearly from 0.
        schedule: after the warm-up ``constant``, falling to 0 (``linear``, ``cosine``) or ``rising`` linearly to lam.

    >>> s = LamSchedule(1e-4, warmup=0.5)
    >>> [s.at(step, 4) for step in range(4)]
    [0.0, 5e-05, 0.0001, 0.0001]
    """

    lam: float
    warmup: float = 0.0
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if isinstance(self.lam, bool) or not (self.lam >= 0 and math.isfinite(self.lam)):
            raise SlimError(f"lam must be a finite number >= 0. Got lam={self.lam}. Set penalty.lam.")
        if not 0 <= self.warmup < 1:
            raise SlimError(f"warmup must be in [0, 1). Got warmup={self.warmup}. Set penalty.warmup, a fraction.")
        if self.schedule not in SCHEDULES:
            raise SlimError(
                f"schedule must be one of {', '.join(SCHEDULES)}. Got schedule={self.schedule}. "
                f"{nearest(self.schedule, SCHEDULES)} Set penalty.schedule."
            )

    def at(self, step: int, total: int) -> float:
        """Lam at ``step`` (0-based) of ``total`` optimizer steps."""
        warm = self.warmup * total
        if step < warm:
            return self.lam * step / warm
        u = min(1.0, (step - warm) / max(1.0, total - warm))
        if self.schedule == "linear":
            return self.lam * (1 - u)
        if self.schedule == "cosine":
            return self.lam * 0.5 * (1 + math.cos(math.pi * u))
        if self.schedule == "rising":
            return self.lam * u
        return self.lam
