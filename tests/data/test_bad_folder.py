"""Every way in which a user's own images and their options can be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from slim.errors import SlimError
from tests.data.folders import MakeFolder, data

# Python 3.12 and newer warn when a process with threads forks, which is how PyTorch starts its workers.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_missing_empty_and_poor_folders(tmp_path: Path, make_folder: MakeFolder) -> None:
    with pytest.raises(SlimError, match=r"No such file.*Set data\.dir"):
        data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlimError, match="no subfolder"):
        data(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(SlimError, match="Not a directory"):
        data(tmp_path / "file")
    with pytest.raises(SlimError, match=r"two classes.*'cat'"):
        data(make_folder(classes=("cat",), name="one"))
    folder = make_folder(name="hollow")
    (folder / "train" / "bird").mkdir()
    (folder / "test" / "bird").mkdir()
    with pytest.raises(SlimError, match=r"none in .*bird"):
        data(folder).setup()
    shutil.copytree(folder / "train" / "cat", folder / "train" / "bird", dirs_exist_ok=True)
    with pytest.raises(SlimError, match=r"none in .*test.bird"):
        data(folder).setup()  # of training: its end would be a bad time to tell
    folder = make_folder(name="uneven")
    (folder / "test" / "bird").mkdir()
    with pytest.raises(SlimError, match=r"same classes.*bird"):
        data(folder)
    with pytest.raises(SlimError, match=r"needs train\. Got Test, Train"):
        data(make_folder(parts=("Train", "Test"), name="capital"))


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "bomb"])
@pytest.mark.parametrize("budget", [4.0, 0.0])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(make_folder: MakeFolder, kind: str, budget: float, workers: int) -> None:
    folder = make_folder(suffix="jpg")
    victim = folder / "train" / "dog" / "003.jpg"
    whole = victim.read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b"", "bomb": _bomb()}[kind]
    victim.write_bytes(broken)
    with pytest.raises(SlimError, match=r"dog/003\.jpg") as caught:
        one = data(folder, memory_budget_gb=budget, num_workers=workers, mean=(0.5,) * 3, std=(0.5,) * 3)
        for _ in range(3):
            list(one.train_dataloader())
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def _bomb() -> bytes:
    """The header of a PNG with 4 * 10^9 pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_a_folder_that_goes_away_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder()
    one = data(folder)
    shutil.rmtree(folder / "train" / "dog")
    with pytest.raises(SlimError, match="train/dog"):
        one.setup()
    folder = make_folder(name="other")
    streamed = data(folder, memory_budget_gb=0)
    streamed.setup()
    shutil.rmtree(folder)
    with pytest.raises(SlimError, match="No such file"):
        list(streamed.train_dataloader())


def test_a_dead_worker_is_a_failed_run(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from slim.data import stream
    from slim.errors import RunFailed

    one = data(make_folder(), memory_budget_gb=0, num_workers=1)
    one.setup()
    monkeypatch.setattr(stream, "read_image", lambda *_: os._exit(1))
    with pytest.raises(RunFailed, match=r"data\.num_workers"):
        list(one.train_dataloader())


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), BrokenPipeError(32, "pipe"), EOFError()])
def test_a_worker_that_dies_handing_over_is_a_failed_run(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whichever side of the pipe is noticed first; an error of the training itself keeps its name."""
    from slim.data import stream
    from slim.errors import RunFailed

    def handing_over(*_: Any, **__: Any) -> Any:
        raise error

    folder = make_folder()
    one, alone = (data(folder, memory_budget_gb=0, num_workers=workers) for workers in (1, 0))
    one.setup(), alone.setup()
    monkeypatch.setattr(stream, "DataLoader", lambda *_, **__: iter(handing_over, None))
    with pytest.raises(RunFailed, match=r"data\.num_workers"):
        list(one.train_dataloader())
    with pytest.raises(type(error)):
        list(alone.train_dataloader())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "data.batch_size"),
    ({"batch_size": 23}, "at most 22"),
    ({"batch_size": "4"}, "data.batch_size"),
    ({"eval_batch_size": 0}, "data.eval_batch_size"),
    ({"seed": -1}, "data.seed"),
    ({"seed": 1.5}, "data.seed"),
    ({"val_fraction": 1.0}, "data.val_fraction"),
    ({"val_fraction": -0.1}, "data.val_fraction"),
    ({"val_fraction": float("nan")}, "data.val_fraction"),
    ({"limit_train": 0}, "data.limit_train"),
    ({"limit_test": -3}, "data.limit_test"),
    ({"limit_train": 2}, "data.batch_size"),
    ({"image_size": 0}, "data.image_size"),
    ({"image_size": "big"}, "data.image_size"),
    ({"in_channels": 2}, "data.in_channels"),
    ({"num_workers": -1}, "data.num_workers"),
    ({"memory_budget_gb": -1}, "data.memory_budget_gb"),
    ({"memory_budget_gb": "all"}, "data.memory_budget_gb"),
    ({"augment": "mixup"}, "data.augment"),
    ({"padding": -1}, "data.padding"),
    ({"mirror": "maybe"}, "data.mirror"),
    ({"mirror": 1}, "data.mirror"),
    ({"mean": [0.5]}, "data.mean"),
    ({"std": [0.5, 0.5, 0.0]}, "data.std"),
    ({"mean": "grey"}, "data.mean"),
    ({"batchsize": 4}, "Did you mean batch_size"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_bad_options_are_one_line_and_leave_no_trace(make_folder: MakeFolder, index: int) -> None:
    options, hint = BAD[index]
    folder = make_folder()
    with pytest.raises(SlimError) as caught:
        data(folder, **options).setup()
    assert hint in str(caught.value) and "\n" not in str(caught.value)
    assert not list(folder.rglob(".slim*"))
