"""Criteria: the importance of channel groups. Each file holds one criterion and registers it by name."""

# Importing a criterion's file registers it; the order is the one in which ``names()`` lists them.
from slim.criteria import (  # noqa: F401
    activation,
    apoz,
    bn_mean,
    bn_variance,
    channel_pruning,
    chip,
    combination,
    dcp,
    fisher,
    gamma,
    geometric_median,
    l1,
    l2,
    random,
    taylor,
    thinet,
    uniform,
)
from slim.criteria.marginal import marginal
from slim.criteria.normalize import NORMALIZATIONS
from slim.criteria.registry import CRITERIA, Criterion, Evidence, Rank, criterion, find, needs_data
from slim.criteria.scores import Scores, score

__all__ = [
    "CRITERIA",
    "NORMALIZATIONS",
    "Criterion",
    "Evidence",
    "Rank",
    "Scores",
    "criterion",
    "find",
    "marginal",
    "names",
    "needs_data",
    "score",
]


def names() -> list[str]:
    """Every registered criterion.

    >>> "gamma" in names()
    True
    """
    return list(CRITERIA)
