"""Whatever a file holds: what was saved in it, or one line about it."""

from __future__ import annotations

import copy
import io
import json
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import slim
from slim.artifact import read_header
from slim.channels import Plan
from slim.data import cache
from slim.errors import SlimError
from slim.files import read_json
from slim.models import vgg
from slim.report import sweep
from slim.runs import weights
from slim.runs.checkpoint import read
from slim.runs.state import State
from slim.sensitivity.result import Sensitivity

SHAPE = (2, 1, 4, 4)


def dense() -> nn.Module:
    return vgg(widths=[8, "M", 8], num_classes=10)


def plan() -> Plan:
    return slim.select(graph := slim.trace(dense(), torch.zeros(1, 3, 8, 8)), slim.score(graph), ratio=0.25)


def _network(path: Path) -> object:
    parts: Any = SimpleNamespace(
        module=lambda kind: dense(),
        network=lambda module: module,
        thin=lambda module, plan: slim.rebuild(module, plan, in_place=True),
        data=None,
    )
    return weights.load(parts, path)


def _sensitivity() -> Sensitivity:
    return Sensitivity((0.1, 0.5), 0.9, 64, "abc", {"conv1": [0.9, 0.4]})


def _save(place: Path) -> None:
    """One whole file of every kind that anything reads."""
    thin = slim.rebuild(dense(), plan())
    slim.save(place / "artifact.safetensors", thin, metadata={"data": "digits"})
    (place / "plan.json").write_text(plan().to_json())
    ours = {"plan": plan().to_json(), "position": {"epoch": 1, "batch": 0}, "seconds": 1.0, "generators": {}}
    values = {f"network.{key}": value for key, value in thin.state_dict().items()}
    checkpoint = {"run": ours, "state_dict": values, "global_step": 3, "callbacks": {}}
    torch.save(checkpoint, place / "last.ckpt")
    torch.save(dense().state_dict(), place / "weights.pt")
    torch.save(dense().state_dict(), place / "legacy.pt", _use_new_zipfile_serialization=False)
    state = State(place, {"seed": 0, "prune": {"ratio": 0.5}}, ["seed=0"])
    state.finish("sparse", {"val": 0.5, "history": {"val_accuracy": [0.1, 0.5]}})
    _sensitivity().save(place / "sensitivity.csv")
    (place / "job").mkdir()
    rows = {name: {"metric": 0.5, "macs": 10, "channels": 4} for name in ("dense", "finetuned")}
    (place / "job" / "report.json").write_text(json.dumps({"status": "finished", "rows": rows, "notes": []}))
    (place / "job" / ".hydra").mkdir()
    (place / "job" / ".hydra" / "overrides.yaml").write_text("- seed=0\n")
    images = torch.arange(32, dtype=torch.uint8).view(SHAPE)
    cache._write(place / "cache.bin", "abc", cache.Decoded(images, (0.5,), (0.1,)))


Loader = Callable[[Path], object]
LOADERS: dict[str, Loader] = {
    "artifact.safetensors": lambda place: slim.load(place / "artifact.safetensors", dense()),
    "plan.json": lambda place: slim.rebuild(dense(), Plan.from_json((place / "plan.json").read_bytes())),
    "last.ckpt": lambda place: (read(place / "last.ckpt"), _network(place / "last.ckpt")),
    "weights.pt": lambda place: _network(place / "weights.pt"),
    "legacy.pt": lambda place: _network(place / "legacy.pt"),
    "state.json": State.load,
    "sensitivity.csv": lambda place: _sensitivity().resume(place / "sensitivity.csv"),
    "job/report.json": sweep.rows,
    "job/.hydra/overrides.yaml": sweep.rows,
    "cache.bin": lambda place: cache._read(place / "cache.bin", "abc", SHAPE),
}
NAMES = st.sampled_from(sorted(LOADERS))
HEADS = st.sampled_from(
    [b"", b"{", b"[", b"null", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", b"# key=abc images=1 whole=1\n", b"- \xff",
     b"# key=abc \nlayer,share,accuracy\n", b'{"format": 1, ', b'{"fingerprint": "abc", ', struct.pack("<Q", 2) + b"{}"]
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("files")
    _save(found)
    return found


class Spoiled:
    """A file that holds something else for a while."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content, self.whole = path, content, path.read_bytes()

    def __enter__(self) -> None:
        self.path.write_bytes(self.content)

    def __exit__(self, *args: object) -> None:
        self.path.write_bytes(self.whole)


def refusal(name: str, place: Path, content: bytes) -> str:
    """Load the file with ``content`` in it: what the SlimError says, or nothing. Any other error comes through."""
    with Spoiled(place / name, content):
        try:
            LOADERS[name](place)
        except SlimError as error:
            return str(error)
    return ""


def one_line(said: str) -> bool:
    """Nothing, or a line that says what was found."""
    return not said or ("Got" in said and "\n" not in said)


def test_whole_files_load(place: Path) -> None:
    for name, load in LOADERS.items():
        load(place)
        assert not refusal(name, place, (place / name).read_bytes()), name
    assert LOADERS["cache.bin"](place) is not None


@given(
    name=NAMES, head=HEADS, content=st.binary(max_size=300), deep=st.sampled_from([b"", b"[" * 4000, b'{"a":' * 4000])
)
def test_random_bytes(place: Path, name: str, head: bytes, content: bytes, deep: bytes) -> None:
    assert one_line(refusal(name, place, head + deep + content))


@given(
    name=NAMES,
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_damaged_files(place: Path, name: str, cut: float, flips: list[tuple[float, int]]) -> None:
    content = bytearray((place / name).read_bytes())
    for where, value in flips:
        content[int(where * len(content))] = value
    assert one_line(refusal(name, place, bytes(content[: round(cut * len(content))]) if cut < 0.5 else bytes(content)))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just(10**400), st.just(2**63), st.floats(), st.text(max_size=4),
    st.just([]), st.just({}), st.just([[0, 0]]), st.just({"a": [1]}),
)  # fmt: skip


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nodes(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    value = copy.copy(value)
    value[path[0]] = by if len(path) == 1 else replaced(value[path[0]], path[1:], by)
    return value


@given(data=st.data(), name=st.sampled_from(["plan.json", "state.json", "job/report.json"]))
def test_json_with_an_odd_value(place: Path, data: st.DataObject, name: str) -> None:
    """Well-formed, and one value in it of another kind."""
    body = json.loads((place / name).read_text())
    odd = replaced(body, data.draw(st.sampled_from(list(nodes(body)))), data.draw(ODD))
    assert one_line(refusal(name, place, json.dumps(odd).encode()))


@given(data=st.data())
def test_an_artifact_with_an_odd_header(place: Path, data: st.DataObject) -> None:
    content = (place / "artifact.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    inner = json.loads(outer["__metadata__"]["slim"])
    inner["plan"] = json.loads(inner["plan"])
    odd = replaced(inner, data.draw(st.sampled_from(list(nodes(inner)))), data.draw(ODD))
    if not isinstance(odd["plan"], str):
        odd["plan"] = json.dumps(odd["plan"])
    outer["__metadata__"]["slim"] = json.dumps(odd)
    header = json.dumps(outer).encode()
    assert one_line(
        refusal("artifact.safetensors", place, struct.pack("<Q", len(header)) + header + content[8 + length :])
    )


@given(data=st.data())
def test_a_checkpoint_with_an_odd_value(place: Path, data: st.DataObject) -> None:
    body = torch.load(place / "last.ckpt", weights_only=True)
    body["state_dict"] = dict(body["state_dict"])
    odd = replaced(body, data.draw(st.sampled_from(list(nodes(body)))), data.draw(ODD))
    buffer = io.BytesIO()
    torch.save(odd, buffer)
    assert one_line(refusal("last.ckpt", place, buffer.getvalue()))


def packed(name: str) -> bytes:
    """A zip file of 100 kB that unpacks to 100 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/data.pkl", b"\0" * 100_000_000)
        archive.writestr(f"{name}/version", b"3")
    return buffer.getvalue()


def saved(body: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(body, buffer)
    return buffer.getvalue()


def not_a_number() -> dict[str, Any]:
    weights = dict(dense().state_dict())
    key = next(key for key in weights if key.endswith("weight"))
    return {**weights, key: torch.full_like(weights[key], torch.nan)}


HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    ("last.ckpt", lambda: packed("last"), "larger than the file"),
    ("weights.pt", lambda: packed("weights"), "larger than the file"),
    ("weights.pt", lambda: saved(not_a_number()), "finite"),
    ("weights.pt", lambda: saved({"a": 3}), "state dict"),
    ("weights.pt", lambda: saved({**dense().state_dict(), "../../etc/passwd": torch.zeros(1)}), "1 unknown"),
    ("weights.pt", lambda: saved(vgg(depth=11, num_classes=10).state_dict()), "configured model"),
    ("last.ckpt", lambda: saved({"state_dict": {}, "run": {}}), "one of a run"),
    ("plan.json", lambda: plan().to_json().replace('"sets":[[8,', '"sets":[[1000000000,').encode(), "size 1000000000"),
    ("plan.json", lambda: b" " * 50_000_000, "plan"),
    ("artifact.safetensors", lambda: struct.pack("<Q", 100 * 2**20) + b"{" * 1000, "header"),
    ("state.json", lambda: b"[" * 50_000, "JSON"),
]


@pytest.mark.parametrize(("name", "content", "says"), HOSTILE, ids=[f"{name}: {says}" for name, _, says in HOSTILE])
def test_hostile_files_are_refused_at_once(name: str, content: Callable[[], bytes], says: str, place: Path) -> None:
    """In one line, under a second of processor time, with memory of no more than twice the file and a little."""
    spoiled = content()
    dense(), plan()  # what is only slow or large the first time
    tracemalloc.start()
    began = time.process_time()
    try:
        message = refusal(name, place, spoiled)
        assert time.process_time() - began < 1.0
        assert tracemalloc.get_traced_memory()[1] < 2 * len(spoiled) + 10_000_000
    finally:
        tracemalloc.stop()
    assert says in message and one_line(message)


def test_a_large_json_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no place
    with pytest.raises(SlimError, match="at most"):
        read_json(path)
    with pytest.raises(SlimError, match="header"):
        read_header(path)
