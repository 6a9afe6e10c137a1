"""Decode image files to byte tensors; errors name the files that cannot be read."""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slim.errors import SlimError

_JPEG_OR_PNG = (b"\xff\xd8", b"\x89PNG")  # how their files begin
_CHUNK = 256  # files per task: long enough to hide the queue, short enough for a smooth progress bar


def read_image(path: str | Path, channels: int) -> torch.Tensor:
    """One image file as uint8 (channels, H, W), turned upright by its EXIF orientation.

    JPEG and PNG are read by torchvision's decoders, which leave the interpreter free for other threads; everything
    else by Pillow.

    Raises:
        SlimError: it is missing, truncated or no image; the message is the reason without the name.
    """
    with _decoding_warnings():
        return _read(path, channels)


@contextlib.contextmanager
def _decoding_warnings() -> Iterator[None]:
    """Warnings while decoding. The filters belong to the process: entered once, outside of threads."""
    from PIL import Image

    with warnings.catch_warnings():
        # Odd metadata, and torchvision's plan to move its decoders to another package.
        warnings.simplefilter("ignore")
        # A picture of 10^8 pixels in a training set is a mistake or an attack, not a hint.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _read(path: str | Path, channels: int) -> torch.Tensor:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SlimError(error.strerror or str(error)) from error
    if not len(content):
        raise SlimError("empty file")
    if not content[:4].tobytes().startswith(_JPEG_OR_PNG) or not _is_whole(content.data):
        return _read_with_pillow(path, channels)
    try:
        # torchvision has announced that a later release will not have them; Pillow reads everything, at half the speed.
        from torchvision.io import ImageReadMode, decode_image

        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        image: torch.Tensor = decode_image(torch.from_numpy(content), mode, apply_exif_orientation=True)
    except (ImportError, RuntimeError):
        return _read_with_pillow(path, channels)
    if image.dtype == torch.uint16:
        image = (image.to(torch.int32) // 257).to(torch.uint8)
    return image


def _is_whole(content: memoryview) -> bool:
    """Whether a PNG ends with its last chunk; every JPEG does.

    Raises:
        SlimError: the bytes of a chunk changed. torchvision would take other pixels, or end the process where it
            cannot unpack them.
    """
    if content[:4] != _JPEG_OR_PNG[1]:
        return True
    start, kind = len(b"\x89PNG\r\n\x1a\n"), b""
    while kind != b"IEND" and start + 12 <= len(content):  # length, kind, what it holds, checksum
        stop = start + 8 + int.from_bytes(content[start : start + 4], "big")
        kind, told = bytes(content[start + 4 : start + 8]), int.from_bytes(content[stop : stop + 4], "big")
        if stop + 4 > len(content):
            return False
        if zlib.crc32(content[start + 4 : stop]) != told:
            raise SlimError(f"damaged: the checksum of {kind.decode('latin-1')!r} differs")
        start = stop + 4
    return kind == b"IEND"


def _read_with_pillow(path: str | Path, channels: int) -> torch.Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            upright = _bytes(ImageOps.exif_transpose(picture), picture.format)
            pixels = np.array(upright.convert("L" if channels == 1 else "RGB"))
    except Exception as error:
        # Pillow's plugins raise many kinds (OSError, SyntaxError, struct.error); all mean the file is bad.
        reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise SlimError(reason or type(error).__name__) from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1)


def _bytes(picture: Any, form: str | None) -> Any:
    """A Pillow image whose pixels are bytes: ``convert`` takes everything above 255 for white."""
    from PIL import Image

    if "16" in picture.mode or (picture.mode == "I" and form in ("PNG", "PPM")):  # Pillow widens those of 16 bits
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {picture.mode}), of which nobody knows what is white")
    return picture


def resize_center_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """Scale the shorter side of uint8 (C, H, W) to ``size`` and cut the middle out: (C, size, size)."""
    if tuple(image.shape[-2:]) == (size, size):
        return image
    from torchvision.transforms.v2 import functional

    return functional.center_crop(functional.resize(image, [size], antialias=True), [size, size])  # type: ignore[no-any-return]


def decode_all(root: Path, files: Sequence[str], size: int, channels: int, title: str) -> torch.Tensor:
    """Decode ``files`` below ``root`` in parallel, with a progress bar.

    Returns:
        uint8 (N, channels, size, size).

    Raises:
        SlimError: files that cannot be read, by name.
    """
    from rich.progress import track

    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)

    def fill(start: int) -> list[tuple[str, str]]:
        bad = []
        for at in range(start, min(start + _CHUNK, len(files))):
            try:
                images[at] = resize_center_crop(_read(root / files[at], channels), size)
            except SlimError as error:
                bad.append((files[at], str(error)))
        return bad

    bad: list[tuple[str, str]] = []
    starts = range(0, len(files), _CHUNK)
    with _decoding_warnings(), ThreadPoolExecutor(_processors()) as pool:
        # Small sets are done before a bar could be read.
        hidden = len(files) < 8 * _CHUNK
        for part in track(pool.map(fill, starts), title, total=len(starts), transient=True, disable=hidden):
            bad += part
    if bad:
        raise unreadable_error(root, bad)
    return images


def unreadable_error(root: Path, bad: Sequence[tuple[str, str]]) -> SlimError:
    """The error that names the files ``(file, reason)`` below ``root``."""
    shown = ", ".join(f"{file} ({reason})" for file, reason in bad[:5]) + (", ..." if len(bad) > 5 else "")
    return SlimError(
        f"every image must be readable. Got {len(bad)} that {'is' if len(bad) == 1 else 'are'} not: {shown} "
        f"(in {root}). Replace or remove {'it' if len(bad) == 1 else 'them'}."
    )


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
