"""Selection: scores, a budget and constraints make a plan."""

from slim.selection.limits import Limits, limits
from slim.selection.selection import Selection, select, select_groups

__all__ = ["Limits", "Selection", "limits", "select", "select_groups"]
