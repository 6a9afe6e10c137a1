"""Decoded images on disk: a second start reads one file instead of every image."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from slim.data.decode import decode_all
from slim.data.listing import Listing
from slim.errors import SlimError
from slim.files import user_cache, write_atomic

log = logging.getLogger(__name__)

_FORMAT = 2  # raise it when decoding changes
_HEADER_LIMIT = 4096  # bytes


class Decoded(NamedTuple):
    """Byte images and what was measured on them."""

    images: torch.Tensor  # uint8 (N, C, H, W)
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]


def load_or_decode(files: Listing, size: int, channels: int, title: str) -> Decoded:
    """All images of ``files``, from the cache if it holds exactly them, else decoded and cached.

    The cache lies beside the images (``.slim-*.bin``), or in the user's cache folder where that cannot be written.
    It is used only if the names, sizes and times of change of all files and the checksum of its pixels agree. A cache
    that cannot be written or read is no error: the images are decoded.

    Raises:
        SlimError: images that cannot be read, by name.
    """
    fingerprint = files.fingerprint(_FORMAT, size, channels)
    shape = (len(files.files), channels, size, size)
    places = _places(files.root, f"{size}px-{channels}ch-{shape[0]}.bin")
    for path in places:
        cached = _read(path, fingerprint, shape)
        if cached is not None:
            log.info("%s read from %s", title, path)
            return cached
    images = decode_all(files.root, files.files, size, channels, title)
    result = Decoded(images, *statistics(images))
    for path in places:
        if _write(path, fingerprint, result):
            log.info("%s decoded and cached in %s", title, path)
            return result
    log.info("%s decoded; no folder for a cache is writable", title)
    return result


def statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of byte images (N, C, H, W), as fractions of 255."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in torch.split(images, 1024):
        # Whole numbers up to 2^53 are exact in doubles, so the order of the sum does not matter.
        values = part.to(torch.int64)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    # A constant channel has no deviation; 1/255 keeps its normalization finite.
    std = (squares / count - mean**2).clamp_min(1.0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _places(root: Path, name: str) -> list[Path]:
    # A hidden file, not a folder: torchvision's ImageFolder would take a folder for a class.
    short = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return [root / f".slim-{name}", user_cache() / f"{short}-{name}"]


def _write(path: Path, fingerprint: str, content: Decoded) -> bool:
    pixels = content.images.numpy()
    header = {
        "fingerprint": fingerprint,
        "checksum": _checksum(pixels, content.mean, content.std),
        "mean": content.mean,
        "std": content.std,
    }

    def fill(file: IO[bytes]) -> None:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(pixels.data)

    try:
        write_atomic(path, fill)
    except (SlimError, OSError) as error:
        log.info("no cache in %s: %s", path.parent, error)
        return False
    return True


def _read(path: Path, fingerprint: str, shape: tuple[int, ...]) -> Decoded | None:
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(_HEADER_LIMIT))
            # Asked before the pixels are read: a stale cache costs nothing.
            if header["fingerprint"] != fingerprint:
                return None
            pixels = np.fromfile(file, dtype=np.uint8)
        mean, std = (tuple(float(value) for value in header[key]) for key in ("mean", "std"))
        if _checksum(pixels, mean, std) != header["checksum"]:
            log.warning("cache %s is damaged; the images are decoded again", path)
            return None
        images = torch.from_numpy(pixels).view(shape)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # a RecursionError is a RuntimeError
        return None
    return Decoded(images, mean, std)


def _checksum(pixels: npt.NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    digest = hashlib.sha256(pixels.data)
    digest.update(repr((mean, std)).encode())
    return digest.hexdigest()
