"""One line of the benchmark's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A measured number and, where there is one, the aim it is held against.

    Attributes:
        group: The sub-benchmark.
        what: What was measured, in words.
        value: The number.
        unit: ``%``, ``x``, ``s``, ``ms``, ``images/s``, ``MiB``, or empty.
        aim: ``("<=", 1.0)`` or ``(">=", 0.8)``; ``None``: for information.
        detail: Raw numbers behind it.
    """

    group: str
    what: str
    value: float
    unit: str = ""
    aim: tuple[str, float] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Row:
        """Counterpart of :meth:`plain`."""
        kept = {key: value for key, value in plain.items() if key != "reached"}
        return cls(**{**kept, "aim": tuple(kept["aim"]) if kept["aim"] else None})

    @property
    def reached(self) -> bool | None:
        if self.aim is None:
            return None
        sign, limit = self.aim
        return self.value <= limit if sign == "<=" else self.value >= limit

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "aim": None if self.aim is None else list(self.aim), "reached": self.reached}

    def cells(self) -> list[str]:
        aim = "" if self.aim is None else f"{self.aim[0]} {self.aim[1]:g} {self.unit}".strip()
        verdict = {None: "", True: "yes", False: "no"}[self.reached]
        return [self.group, self.what, f"{self.value:.3g} {self.unit}".strip(), aim, verdict]
