"""Lightning's moving average of the weights, which came with its release 2.6; with an older one the fits do without."""

from __future__ import annotations

from typing import Any

import pytest

try:
    from pytorch_lightning.callbacks import EMAWeightAveraging
except ImportError:
    EMAWeightAveraging = None  # type: ignore[assignment,misc]

needs_average = pytest.mark.skipif(EMAWeightAveraging is None, reason="EMAWeightAveraging came with Lightning 2.6")


def averages() -> list[Any]:
    """A moving average of the weights, where there is one."""
    return [] if EMAWeightAveraging is None else [EMAWeightAveraging(decay=0.5)]
