"""Files are whole or not there."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from slim.errors import RunFailed, SlimError
from slim.files import lock, read_json, read_torch, user_cache, write_atomic, write_json


def test_replaces_and_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "one")
    write_atomic(path, lambda file: file.write(b"two"))
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a name without its bytes would be an empty file in place of the old one."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names))[1])
    write_atomic(tmp_path / "file.txt", "whole")
    assert done[:2] == ["sync", "rename"]


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "file.txt", "old")

    def fails(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunFailed, match=r"room for file\.txt"):
        write_atomic(path, fails)
    with pytest.raises(KeyError):
        write_atomic(path, lambda file: {}["missing"])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    """Whoever may would replace /dev/null by a file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_atomic(path, b"whole")
        assert path.is_fifo() and reader.read() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    """/dev/stdout is a link, to a file where the shell says so."""
    target, link = tmp_path / "large disk" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in ("one", "two"):
        write_atomic(link, content)
        assert link.is_symlink() and target.read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["file/below", "x" * 250, "closed/file"])
def test_a_place_that_cannot_be_written_to_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith("closed"):  # root may write anywhere: the answers of a folder that may not be entered
            patch.setattr(Path, "open", _denied)
            patch.setattr(Path, "unlink", _denied)
        with pytest.raises(SlimError, match="A file must be writable"):
            write_atomic(tmp_path / name, "x")


def _denied(path: Path, *args: object, **options: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_names_that_are_no_text_can_be_written_about(tmp_path: Path) -> None:
    assert write_atomic(tmp_path / "report.md", os.fsdecode(b"caf\xe9")).read_text() == "caf\\udce9"


@pytest.mark.parametrize("kind", ["bytes", "torch"])
def test_a_full_disk(kind: str, tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: real writes fail half way."""
    path = write_atomic(tmp_path / "weights", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RunFailed, match="room for weights"):
            if kind == "bytes":
                write_atomic(path, b"x" * 1_000_000)
            else:
                write_atomic(path, lambda file: torch.save({"w": torch.zeros(250_000)}, file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bare number in a container, whom nobody gave ``$HOME``."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    place = user_cache() / "found.json"
    assert not place.is_file()
    with pytest.raises(SlimError, match="writable"):
        write_json(place, {})


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert lock(first.fileno()) and not lock(second.fileno())
        for number in (errno.ENOSYS, errno.ENOLCK):
            monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, os.strerror(number))))
            assert lock(second.fileno()) and lock(second.fileno(), wait=True)
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.EBADF, "Bad file descriptor")))
        with pytest.raises(OSError, match="Bad"):
            lock(second.fileno())


@pytest.mark.parametrize("content", [{"state_dict": {}, "args": argparse.Namespace(lr=0.1)}, nn.Linear(1, 1)])
def test_objects_beside_weights_are_named_with_what_to_do(content: Any, tmp_path: Path) -> None:
    """As the scripts of many papers save them: the file is whole, and was saved so."""
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(SlimError, match=r"holds a (argparse\.Namespace|torch\.nn\S*Linear) .*model\.state_dict"):
        read_torch(tmp_path / "a.pth")


def test_json(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert read_json(path) == json.loads(path.read_text())
    write_json(path, {"a": [1, 2.5, float("nan")], "b": (float("inf"),)})
    assert read_json(path) == {"a": [1, 2.5, None], "b": [None]}, "which other programs read, too"
    path.write_text("{")
    for bad in (path, tmp_path / "missing.json"):
        with pytest.raises(SlimError, match="Got"):
            read_json(bad)
    with pytest.raises(SlimError, match="at most 0 bytes"):
        read_json(path, limit=0)
