"""Bad input ends in one line on stderr and exit code 2; nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import slim
import train
from slim.command.compose import compose, keys, register
from slim.command.exits import guarded
from slim.models import vgg
from tests.cli.bad_calls import CALLS
from tests.cli.bad_inputs import TRAIN

ROOT = Path(__file__).parents[2]


class Bomb:
    """Pickle that would make a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files and folders that the command lines point at."""
    home = tmp_path_factory.mktemp("places")
    found = {name: home / name for name in ("empty", "one_class", "broken_state", "strange_state")}
    for place in found.values():
        place.mkdir()
    (found["one_class"] / "train" / "cat").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (8, 8)).save(found["one_class"] / "train" / "cat" / f"{index}.png")
    (found["broken_state"] / "state.json").write_text('{"format": 1, ')
    (found["strange_state"] / "state.json").write_text(json.dumps({"format": 99, "config": {}}))
    files = {
        "text": home / "text.pt",
        "bomb": home / "bomb.ckpt",
        "bomb_pt": home / "bomb.pt",
        "truncated": home / "truncated.safetensors",
        "other": home / "other.safetensors",
    }
    files["text"].write_text("not a network")
    files["bomb"].write_bytes(pickle.dumps({"state_dict": Bomb(home / "exploded")}))
    torch.save({"weights": Bomb(home / "exploded")}, files["bomb_pt"])
    slim.save(files["other"], vgg(depth=11, num_classes=7), None)
    files["truncated"].write_bytes(files["other"].read_bytes()[:1000])
    return found | files | {"exploded": home / "exploded"}


BAD: list[tuple[str | Callable[[], object], str]] = [*TRAIN, *((call, expected) for _, call, expected in CALLS)]
NAMES = [*(line for line, _ in TRAIN), *(name for name, _, _ in CALLS)]


@pytest.mark.parametrize(("bad", "expected"), BAD, ids=NAMES)
def test_one_line_and_nothing_written(
    bad: str | Callable[[], object],
    expected: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Command lines, and calls of the public API as a program of one's own would make them."""
    monkeypatch.chdir(tmp_path)
    before = sorted(places["empty"].parent.rglob("*"))
    if isinstance(bad, str):
        for name, path in places.items():
            bad, expected = (text.replace(f"{{{name}}}", str(path)) for text in (bad, expected))
        code = train.main(bad.split())
    else:
        code = guarded(lambda: int(bool(bad())))
    assert code == 2
    out, err = capfd.readouterr()
    lines = [text for text in err.splitlines() if text.strip()]
    assert len(lines) == 1, err
    assert expected in lines[0]
    assert re.fullmatch(r"\S.+ Got .+ \S.*[.?]", lines[0]), "rule. Got name=value (where). What to change"
    assert "Traceback" not in out + err
    assert list(tmp_path.rglob("*")) == []
    assert sorted(places["empty"].parent.rglob("*")) == before
    assert not places["exploded"].exists()


def test_a_reader_that_has_seen_enough() -> None:
    """``train.py --help | head``: no traceback, no failure."""
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr as told:
        assert told.read() == ""
    assert process.wait() == 0


def test_as_a_process(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "train.py"), "+experiment=nothing"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_are_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["prune.ratio=1.0", "seed=-1", "+sparse.epoch=3"]) == 2
    err = capfd.readouterr().err
    assert all(word in err for word in ("ratio", "seed", "epochs"))
    assert len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main(["prune.ratio=1.0", "debug=true"]) == 2
    assert "Traceback" in capfd.readouterr().err


KEYS = st.deferred(lambda: st.sampled_from(keys()))
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["null", "true", "[]", "{}", "[1,a]", "{a:1}", "[[1]]", "[0.5,0.2]", "''", "abc", "a.b", "???", "${seed}",
         "${nowhere}", "1" + 400 * "0", "1e-300", "100000"]
    ),
    st.text(max_size=12),
)  # fmt: skip
SMALL = ["data.limit_train=64", "data.image_size=8", "data.batch_size=8", "model.widths=[8,M,8]"]


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
@settings(max_examples=settings().max_examples // 4)
def test_only_slim_errors_come_out(given: dict[str, str]) -> None:
    """Random values for any key: everything a run needs is built, or it is refused in one line of ours."""
    from hydra._internal.utils import get_args_parser

    from slim.runs.prepare import prepare

    register("id")
    args = get_args_parser().parse_args([])
    rest = [item for item in SMALL if item.partition("=")[0] not in given]

    def build() -> int:
        config, _ = compose([*rest, *(f"{key}={value}" for key, value in given.items())], args)
        prepare(config)
        return 0

    lines: list[str] = []
    assert guarded(build, lines=lines) in (0, 2), lines
    assert all("Got" in line and "\n" not in line for line in lines)
