"""Step counter of a law, and a loaded state that may arrive before or after ``attach``."""

from __future__ import annotations

from numbers import Real
from typing import Any

from slim.errors import SlimError


class Progress:
    """Steps done of a phase, and the loaded state that waits for ``attach``.

    A trainer may load a checkpoint before or after it attaches the penalty, and may attach again after loading. So a
    loaded state stays pending until the first step: ``attach`` restores it, and starts from zero without one.
    """

    def __init__(self, law: str) -> None:
        self.law = law
        self.step = 0
        self.total = 0
        self.pending: dict[str, Any] | None = None

    def attach(self, total_steps: int) -> dict[str, Any] | None:
        """Start a phase of ``total_steps`` optimizer steps, or continue a loaded one; returns the loaded state."""
        if not isinstance(total_steps, Real) or not 1 <= total_steps < float("inf"):
            raise SlimError(f"total_steps must be >= 1. Got total_steps={total_steps!r}. Set the phase's epochs.")
        self.total = int(total_steps)
        self.step = int(self.pending["step"]) if self.pending else 0
        return self.pending

    def check_attached(self) -> None:
        """Raise where the law knows no network yet."""
        if not self.total:
            raise SlimError(f"a penalty must be attached before it acts. Got penalty={self.law}. Call attach() first.")

    def before_step(self) -> int:
        """The number of the step that begins, from 0."""
        self.check_attached()
        self.pending = None
        return self.step

    def load(self, state: dict[str, Any]) -> None:
        """Load a state dict, now and again at the next ``attach``."""
        if state.get("law") != self.law:
            raise SlimError(
                f"a state must come from the same law. Got law={state.get('law')} for penalty={self.law}. "
                "Resume with the penalty the run was started with."
            )
        self.pending = dict(state)
        self.step = int(state["step"])

    def state(self) -> dict[str, Any]:
        """The part of a state dict every law has."""
        return {"law": self.law, "step": self.step}
