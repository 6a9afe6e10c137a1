"""Sensitivity analysis: how many channels each layer can lose."""

from slim.sensitivity.figures import draw, figure
from slim.sensitivity.measure import SHARES, measure
from slim.sensitivity.result import Sensitivity

__all__ = ["SHARES", "Sensitivity", "draw", "figure", "measure"]
