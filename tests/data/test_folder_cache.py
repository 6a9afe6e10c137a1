"""The cache of decoded images: it follows the files, and the statistics of its pixels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from slim.data.cache import load_or_decode, statistics
from tests.data.folders import MakeFolder, data, same

# Python 3.12 and newer warn when a process with threads forks, which is how PyTorch starts its workers.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_the_cache_is_used_and_follows_the_files(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder()
    first = data(folder)
    batches = list(first.train_dataloader())
    (cache,) = (folder / "train").glob(".slim-*.bin")
    calls = []
    real = load_or_decode.__globals__["decode_all"]
    monkeypatch.setitem(load_or_decode.__globals__, "decode_all", lambda *args: calls.append(1) or real(*args))
    again = data(folder)
    assert same(list(again.train_dataloader()), batches) and again.mean == first.mean and not calls

    content = bytearray(cache.read_bytes())
    content[-1] ^= 1
    cache.write_bytes(content)
    assert same(list(data(folder).train_dataloader()), batches) and len(calls) == 1
    cache.write_bytes(content[:100])
    assert same(list(data(folder).train_dataloader()), batches) and len(calls) == 2
    cache.write_bytes(b"\x80\x04pickle?\n")
    assert same(list(data(folder).train_dataloader()), batches) and len(calls) == 3

    Image.new("RGB", (16, 16)).save(folder / "train" / "cat" / "000.png")
    data(folder).setup()
    assert len(calls) == 4
    data(folder, image_size=8).setup()
    assert len(calls) == 5


def test_the_cache_goes_elsewhere_where_it_must(
    make_folder: MakeFolder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    # A folder in the cache's place: no user, root included, can write the file.
    (folder / "train" / ".slim-16px-3ch-24.bin" / "full").mkdir(parents=True)
    data(folder).setup()
    assert len(list((own_cache / "slim").iterdir())) == 1
    shutil.rmtree(own_cache)
    own_cache.write_text("")
    data(folder).setup()
    own_cache.unlink()
    own_cache.mkdir()


def test_the_cache_is_no_class_to_torchvision(make_folder: MakeFolder) -> None:
    from torchvision.datasets import ImageFolder

    folder = make_folder()
    data(folder).setup()
    assert ImageFolder(folder / "train").classes == ["cat", "dog"]


def test_statistics_are_the_pixels(make_folder: MakeFolder) -> None:
    images = torch.randint(0, 256, (7, 3, 5, 5), dtype=torch.uint8)
    mean, std = statistics(images)
    flat = images.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), flat.mean(1))
    torch.testing.assert_close(torch.tensor(std).double(), flat.std(1, correction=0))
    assert all(value > 0 for value in statistics(torch.zeros_like(images))[1])
    own = data(make_folder(), mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert own.mean == (0.5, 0.5, 0.5) and own.std == (1.0, 1.0, 1.0)
