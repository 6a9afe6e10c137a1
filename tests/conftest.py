"""What every test may rely on: one thread, fixed seeds, no display, no network, hypothesis profiles."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import random
from collections.abc import Iterator
from typing import Any

# Before torch, numpy or matplotlib are imported for the first time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from tensorboard.summary.writer import event_file_writer
from xdist.scheduler import LoadScopeScheduling

# TensorBoard reads event files by name: second, process, a counter without leading zeros. Runs that stop and go on in
# this process within one second would be read in the wrong order where the counter gets another digit.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)

# Lightning looks for plug-ins among all installed packages whenever a Trainer is made; a run makes a dozen.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

# Same examples in every run: a red test stays red until it is mended. `make fuzz` looks further.
_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "suite", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "fuzz", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, in any order and in any process."""
    _seed()


@pytest.fixture(autouse=True)
def closed_logs() -> Iterator[None]:
    """A run in this process leaves its train.log open for the next one; collected later, it would fail another test."""
    yield
    for handler in [each for each in logging.root.handlers if type(each) is logging.FileHandler]:
        logging.root.removeHandler(handler)
        handler.close()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """So does every fixture that tests share: it is set up before `seeded`, after whichever test came first."""
    if fixturedef.scope != "function":
        _seed()


class ByFile(LoadScopeScheduling):
    """A file's tests share a worker, so that what they share is made once; those that start processes share one too.

    What the latter start is forked from one server process for each worker, which takes seconds to import everything.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "processes" if file in PROCESSES else file


PROCESSES = (
    "tests/chaos/test_harness.py",
    "tests/lightning/test_ranks.py",
    "tests/runs/test_failures.py",
    "tests/runs/test_processes.py",
    "tests/runs/test_resume.py",
)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByFile(config, log)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
