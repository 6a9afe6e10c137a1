"""The metric that a run compares its networks by: accuracy, mIoU, mAP, an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slim.report import formatting


@dataclass(frozen=True)
class Metric:
    """How values of a metric are shown.

    Attributes:
        name: Of the metric.
        percent: Whether its values are fractions that people read as percentages.
    """

    name: str = "accuracy"
    percent: bool = True

    @property
    def label(self) -> str:
        """For an axis."""
        return f"{self.name}, %" if self.percent else self.name

    def shown(self, value: Any) -> str:
        """One value.

        >>> Metric().shown(0.93771), Metric("mae", False).shown(0.93771), Metric().shown(None)
        ('93.77%', '0.9377', '-')
        """
        if self.percent:
            return formatting.percent(value)
        amount = formatting.number(value)
        return formatting.MISSING if amount is None else f"{amount:.4g}"

    def change(self, value: Any, before: Any) -> str:
        """How far ``value`` is from ``before``.

        >>> Metric().change(0.931, 0.938), Metric("mae", False).change(0.5, 0.25)
        ('-0.70 pt', '+0.25')
        """
        if self.percent:
            return formatting.points(value, before)
        now, then = formatting.number(value), formatting.number(before)
        return "" if now is None or then is None else f"{now - then:+.3g}"

    def scaled(self, value: float) -> float:
        """For an axis."""
        return 100 * value if self.percent else value

    def limits(self, values: Sequence[float]) -> tuple[float, float]:
        """Of an axis on which ``values`` stand as bars with their numbers beside them; some metrics are negative.

        >>> Metric("r2", False).limits([-2.0, 0.5]), Metric("mae", False).limits([0.0])
        ((-2.26, 0.565), (0.0, 1.0))
        """
        scaled = [self.scaled(value) for value in values]
        low, high = 1.13 * min(0.0, *scaled), 1.13 * max(0.0, *scaled)
        return (low, high) if low < high else (0.0, 1.0)


def metric_of(record: Mapping[str, Any]) -> Metric:
    """The metric of a run's record."""
    given = record.get("metric")
    if not isinstance(given, Mapping):
        return Metric()
    return Metric(str(given.get("name", "accuracy")), bool(given.get("percent", True)))
