"""Whatever the bytes: an image, or one line about the file."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slim.data.cache import _read
from slim.data.decode import read_image
from slim.data.sampling import derive_seed
from slim.data.splits import permutation, split
from slim.errors import SlimError


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


WHOLE = {kind: encoded(kind) for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "image"


@given(
    kind=st.sampled_from(sorted(WHOLE)),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    channels=st.sampled_from([1, 3]),
)
def test_damaged_images(place: Path, kind: str, cut: float, flips: list[tuple[float, int]], channels: int) -> None:
    content = bytearray(WHOLE[kind])
    for where, value in flips:
        content[int(where * len(content))] = value
    place.write_bytes(content[: max(1, round(cut * len(content)))])
    try:
        image = read_image(place, channels)
    except SlimError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == channels


def test_a_png_whose_pixels_changed_is_damaged(place: Path) -> None:
    """Bytes that cannot be unpacked ended the process inside torchvision; others gave other pixels."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "png")
    whole = buffer.getvalue()
    start = whole.index(b"IDAT") + 4
    for at in range(start, start + 200, 5):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises(SlimError, match=r"^damaged: the checksum of 'IDAT' differs$"):
            read_image(place, 3)
    place.write_bytes(whole + b"what stands behind the last chunk")
    assert read_image(place, 3).shape == (3, 256, 256)


@given(content=st.binary(max_size=200), header=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"]))
def test_random_bytes_are_no_image(place: Path, content: bytes, header: bytes) -> None:
    place.write_bytes(header + content)
    with pytest.raises(SlimError):
        read_image(place, 3)


@given(
    content=st.binary(max_size=200), head=st.sampled_from([b"", b"{", b'{"fingerprint": "x"}\n', b"[]\n", b"null\n"])
)
def test_random_bytes_are_no_cache(place: Path, content: bytes, head: bytes) -> None:
    place.write_bytes(head + content)
    assert _read(place, "x", (2, 3, 4, 4)) is None


@given(
    count=st.integers(2, 300),
    fraction=st.floats(0, 1, exclude_max=True),
    limit=st.one_of(st.none(), st.integers(1, 400)),
)
def test_splits_are_disjoint_prefixes_of_one_shuffle(count: int, fraction: float, limit: int | None) -> None:
    try:
        train, val = split(count, fraction, limit)
    except SlimError:
        assert fraction > 0
        return
    order = permutation(count)
    assert torch.equal(train, order[: len(train)]) and torch.equal(val, order[count - len(val) :])
    assert len(train) + len(val) <= count and len(train) >= 1
    assert (len(val) == 0) == (fraction == 0)
    assert limit is None or len(train) <= limit


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=4))
def test_seeds_fit_every_generator(key: list[int]) -> None:
    assert 0 <= derive_seed(*key) < 2**63


def test_names_are_cheap() -> None:
    """Reading a command line must not wait for Lightning, torchvision or scikit-learn."""
    code = (
        "import sys, slim.data, slim.models; "
        "print([m for m in ('pytorch_lightning', 'torchvision', 'sklearn', 'rich', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
