"""Kills hit work, at the event they are aimed at; a miss, a run that hangs and one that differs are errors."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.chaos import events as chaos_events
from experiments.chaos import harness
from experiments.chaos.events import Aim, Recorder
from experiments.chaos.harness import TINY, Outcome, chaos, compare, exit_code, start
from slim.files import write_atomic
from tests.chaos.stand_in import STAND_IN, hanging, not_atomic, ten_files, without_kill

# Four steps to an epoch, surgery after the first epoch.
SHORT = (
    *TINY,
    "data.limit_train=128",
    "data.limit_test=64",
    "sparse.epochs=2",
    "sparse.slim_every=1",
    "finetune.epochs=1",
)


@pytest.fixture(scope="module")
def three_kills(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A real run and one that was killed three times."""
    folder = tmp_path_factory.mktemp("chaos")
    return folder, chaos(folder, 3, overrides=SHORT)


def test_three_kills(three_kills: tuple[Path, Outcome]) -> None:
    """SIGKILL at random events; what is resumed ends with the same bits."""
    folder, outcome = three_kills
    assert outcome.differences == []
    assert len(outcome.kills) == 3
    seen = (folder / "events").read_text().splitlines()
    assert set(outcome.kills) <= set(seen)
    assert seen.count("sparse: step") == 8 and seen.count("sparse: epoch") == 2 and seen.count("finetune: step") == 4
    # The last line of each process that was killed is the event it was killed at.
    killed = (folder / "killed-0.events").read_text().splitlines()
    assert killed[-1] == outcome.kills[-1]
    assert not list(folder.glob("killed-0/**/*.part"))


def test_comparing_sees_one_bit(three_kills: tuple[Path, Outcome], tmp_path: Path) -> None:
    folder, _ = three_kills
    changed = tmp_path / "changed"
    for path in (folder / "whole").rglob("*"):
        if path.is_file():
            write_atomic(changed / path.relative_to(folder / "whole"), path.read_bytes())
    outcome = Outcome()
    compare(folder / "whole", changed, outcome)
    assert outcome.differences == []
    weights = changed / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    compare(folder / "whole", changed, outcome)
    assert outcome.differences == ["model.safetensors"]


# The harness on a stand-in for a run


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_event_has_its_turn(tmp_path: Path, seed: int) -> None:
    kinds = 2 * (10 + 2)  # ten files and state.json twice, each half written and written
    outcome = chaos(tmp_path, kinds, seed, program=STAND_IN)
    assert outcome.differences == []
    assert len(outcome.kills) == len(set(outcome.kills)) == kinds
    assert outcome.victims == kinds / harness.KILLS_PER_VICTIM


def test_the_same_seed_kills_at_the_same_events(tmp_path: Path) -> None:
    first, second, third = (
        chaos(tmp_path / str(at), 7, seed, program=STAND_IN).kills for at, seed in enumerate((1, 1, 2))
    )
    assert first == second != third


def test_victims_that_all_end_early_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"A kill must hit work\. Got 4 victims of 4"):
        chaos(tmp_path, 3, program=replace(STAND_IN, main=without_kill))


def test_a_run_that_loses_a_file_is_seen(tmp_path: Path) -> None:
    """Half-written files that count as whole: the mistake that atomic writing is there against."""
    assert chaos(tmp_path, 12, program=replace(STAND_IN, main=not_atomic)).differences != []


@pytest.mark.parametrize(("event", "left"), [("half written", b"01234"), ("written", b"0123456789")])
def test_a_kill_while_a_file_is_written(tmp_path: Path, event: str, left: bytes) -> None:
    place = tmp_path / "run"
    recorder = Recorder(place, tmp_path / "log", Aim(f"sparse: 3.txt {event}", 1))
    assert exit_code(start([f"hydra.run.dir={place}"], recorder=recorder, main=ten_files)) == -9
    (path,) = [*place.glob(".3.txt.*.part"), *place.glob("3.txt")]
    assert path.read_bytes() == left
    assert not (place / "4.txt").exists()


def test_a_run_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LIMIT", 1)
    with pytest.raises(RuntimeError, match=r"Got -14\. It took longer than 1 s"):
        chaos(tmp_path, 1, program=replace(STAND_IN, main=hanging))


def test_moments_are_in_order_and_of_their_kind() -> None:
    events = ["begin: a", *["sparse: step"] * 50, "sparse: epoch", *["finetune: step"] * 50]
    for seed in range(20):
        moments = harness._moments(events, ["finetune: step", "sparse: step"], random.Random(seed))
        assert [events[moment] for moment in moments] == ["sparse: step", "finetune: step"]


def test_where_says_what_a_run_does(tmp_path: Path) -> None:
    assert chaos_events.where(tmp_path) == "begin"
    state = {"config": {"phases": ["sparse", "prune"]}, "phases": {}, "finished": False}
    for done, says in ((0, "sparse"), (1, "prune"), (2, "report")):
        state["phases"] = {name: {} for name in "ab"[:done]}
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert chaos_events.where(tmp_path) == says
    (tmp_path / "state.json").write_text(json.dumps({**state, "finished": True}))
    assert chaos_events.where(tmp_path) == "end"
    assert os.replace.__module__ != "experiments.chaos.events", "only children are watched"
