"""Selection: scores, a budget and constraints make a plan."""

from slim.selection.further import left_over, select_further
from slim.selection.limits import Limits, limits
from slim.selection.schedules import SCHEDULES, Pass, passes, relative
from slim.selection.selection import Selection, select, select_groups
from slim.selection.soft import soften

__all__ = [
    "SCHEDULES",
    "Limits",
    "Pass",
    "Selection",
    "left_over",
    "limits",
    "passes",
    "relative",
    "select",
    "select_further",
    "select_groups",
    "soften",
]
