"""What every test may rely on: one thread, fixed seeds, no display, no network, hypothesis profiles."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import multiprocessing
import os
import random
from collections.abc import Iterator
from typing import Any

# Before torch, numpy or matplotlib are imported for the first time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

# A worker's last seconds would go into freeing two million objects; what is registered after this happens before it.
if os.environ.get("PYTEST_XDIST_WORKER"):
    atexit.register(os._exit, 0)

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Same examples in every run: a red test stays red until it is mended. `make fuzz` looks further.
_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "suite", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "fuzz", max_examples=5000, deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile("suite")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where tests run; the process that hands them out needs no torch, and the others wait for it."""
    gc.disable()  # what is imported for the tests is no garbage
    if os.environ.get("PYTEST_XDIST_WORKER") or not session.config.getoption("numprocesses", None):
        importlib.import_module("tests.once")


def pytest_collection_finish() -> None:
    """What is there now stays. What tests start processes from has their parts, too, besides those of the harness."""
    # A collection of everything is cheap from here on, but would come for every quarter that so little grows.
    gc.freeze()
    gc.set_threshold(700, 10, 100)
    gc.enable()
    multiprocessing.set_forkserver_preload(["tests.once", "experiments.chaos.warm", "tests.sweeps.sharing"])


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


GROUPS = {
    "processes": (
        "tests/chaos/test_harness.py",
        "tests/cli/test_sweep.py",
        "tests/lightning/test_ranks.py",
        "tests/runs/test_failures.py",
        "tests/runs/test_loggers.py",
        "tests/runs/test_processes.py",
        "tests/runs/test_resume.py",
        "tests/sweeps/test_launchers.py",
        "tests/sweeps/test_study.py",
    ),
    "exports": (
        "tests/deploy/test_export.py",
        "tests/deploy/test_parity.py",
        "tests/deploy/test_pt2e.py",
        "tests/docs/test_pages.py",
        "tests/runs/test_exporting.py",
    ),
}
"""Files whose tests share a worker: they fork from one server that takes seconds to import everything, or they import
what exports need themselves."""
LONG = (
    "tests/runs/test_configs.py",
    "tests/runs/test_run.py",
    "tests/channels/test_families.py",
    "tests/channels/test_fuzz.py",
    "tests/runs/test_schedules.py",
    "tests/report/test_write.py",
    "tests/lightning/test_five_modules.py",
    "tests/examples/test_own.py",
    "tests/command/test_wheel.py",
    "tests/runs/test_cut_forecast.py",
    "tests/runs/test_budgets.py",
    "tests/runs/test_commands.py",
    "tests/selection/test_latency.py",
    "tests/selection/test_random_networks.py",
)
"""Files that take seconds for each of their tests: pytest-xdist would keep them for the end, where one worker waits."""
GROUP_OF = {file: group for group, files in GROUPS.items() for file in files}


class ByFile(LoadScopeScheduling):
    """A file's tests share a worker, so that what they share is made once; what takes long goes first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return GROUP_OF.get(file, file)

    def _assign_work_unit(self, node: Any) -> None:
        if waiting := [scope for scope in (*GROUPS, *LONG) if scope in self.workqueue]:
            self.workqueue.move_to_end(waiting[0], last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: Any) -> str | None:
        """Share out what a worker left that ended: not the test that ended it, which the base class would hand to the
        next worker and the next, and not what is done, for which it would wait for ever."""
        work = self.assigned_work.pop(node)
        ended = next((test for unit in work.values() for test, done in unit.items() if not done), None)
        for scope, unit in work.items():
            left = {test: False for test, done in unit.items() if not done and test != ended}
            if left:
                self.workqueue[scope] = left
        for other in self.assigned_work:
            self._reschedule(other)
        return ended


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByFile(config, log)


def _seed() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)  # a Trainer that asked for them leaves it so
