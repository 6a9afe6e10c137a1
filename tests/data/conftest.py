"""Small data sets made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.folders import MakeFolder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder is the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes ``parts`` x ``classes`` folders of random pictures and returns their root."""

    def make(
        parts: tuple[str, ...] = ("train", "test"),
        classes: tuple[str, ...] = ("cat", "dog"),
        count: int = 12,
        size: tuple[int, int] = (16, 16),
        suffix: str = "png",
        name: str = "pictures",
    ) -> Path:
        from PIL import Image

        random = np.random.default_rng(0)
        for part in parts:
            for label in classes:
                folder = tmp_path / name / part / label
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index:03}.{suffix}")
        return tmp_path / name

    return make
