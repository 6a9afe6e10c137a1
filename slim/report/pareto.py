"""Which of several networks no other beats."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the points that no other one beats: cheaper or as cheap, and better or as good, and not equal.

    Args:
        points: ``(cost, value)``; less cost and more value is better.

    Returns:
        In the order of their costs; of equal points the first.

    >>> front([(1.0, 0.5), (2.0, 0.4), (2.0, 0.9), (3.0, 0.9)])
    [0, 2]
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1], number)):
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found
