"""Which tests a worker gets, and what becomes of them when one of them ends it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from tests.conftest import GROUP_OF, LONG, ByFile

ROOT = Path(__file__).parents[2]


class Worker:
    """As the scheduler sees one."""

    shutting_down = False

    def __init__(self) -> None:
        self.given: list[int] = []

    def send_runtest_some(self, indexes: list[int]) -> None:
        self.given += indexes

    def shutdown(self) -> None:
        self.shutting_down = True


def test_a_test_that_ends_its_worker_is_not_given_to_the_next() -> None:
    """The others are, and nothing that is done: of that no end would be told."""
    tests = ["a::1", "a::2", "b::1", "b::2", "b::3", "c::1"]
    ended, alive = Worker(), Worker()
    scheduler: Any = object.__new__(ByFile)
    scheduler.workqueue = OrderedDict({"c": {"c::1": False}})
    scheduler.assigned_work = {
        ended: OrderedDict(a={"a::1": True, "a::2": True}, b={"b::1": True, "b::2": False, "b::3": False}),
        alive: OrderedDict(),
    }
    scheduler.registered_collections, scheduler.log = {alive: tests}, lambda *_: None
    assert scheduler.remove_node(ended) == "b::2"
    while scheduler.workqueue:
        scheduler._assign_work_unit(alive)
    assert sorted(tests[index] for index in alive.given) == ["b::3", "c::1"]


def test_a_worker_that_is_done_leaves_nothing() -> None:
    done = Worker()
    scheduler: Any = object.__new__(ByFile)
    scheduler.workqueue, scheduler.assigned_work = OrderedDict(), {done: OrderedDict(a={"a::1": True})}
    assert scheduler.remove_node(done) is None
    assert not scheduler.workqueue and not scheduler.assigned_work


def test_what_is_named_is_there() -> None:
    assert all((ROOT / file).is_file() for file in (*GROUP_OF, *LONG))
