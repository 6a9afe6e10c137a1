"""Selection: scores, a budget and constraints make a plan."""

from slim.selection.budget import target_of
from slim.selection.iterative import (
    LIMITS,
    dense_limits,
    limits_by_module,
    overrides_of,
    remaining_budget,
    select_next_cut,
)
from slim.selection.limits import Limits, limits
from slim.selection.losses import losses
from slim.selection.schedules import SCHEDULES, Pass, limits_due, overrides_due, passes, relative
from slim.selection.selection import NothingRemovable, Selection, check_options, select, select_groups
from slim.selection.soft import soften
from slim.selection.zeros import exact_zeros

__all__ = [
    "LIMITS",
    "SCHEDULES",
    "Limits",
    "NothingRemovable",
    "Pass",
    "Selection",
    "check_options",
    "dense_limits",
    "exact_zeros",
    "limits",
    "limits_by_module",
    "limits_due",
    "losses",
    "overrides_due",
    "overrides_of",
    "passes",
    "relative",
    "remaining_budget",
    "select",
    "select_groups",
    "select_next_cut",
    "soften",
    "target_of",
]
