"""What every test may rely on: one thread, fixed seeds, no display, no network, hypothesis profiles."""

from __future__ import annotations

import os
import random

# Before torch, numpy or matplotlib are imported for the first time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Same examples in every run: a red test stays red until it is mended. `make fuzz` looks further.
_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "suite", max_examples=100, deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "fuzz", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, in any order and in any process."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """So does every fixture that tests share: it is set up before `seeded`, after whichever test came first."""
    if fixturedef.scope != "function":
        _seed()


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
