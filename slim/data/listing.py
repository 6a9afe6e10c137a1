"""Lists the images of a folder with one subfolder per class."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from slim.errors import SlimError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


class Listing(NamedTuple):
    """Image files in the order of their class and path."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]  # relative to root
    stamps: tuple[tuple[int, int], ...]  # (bytes, modification time in ns) per file
    labels: torch.Tensor  # int64 (N,)

    def subset(self, index: torch.Tensor) -> Listing:
        """The files at ``index``, in that order."""
        at = index.tolist()
        return self._replace(
            files=tuple(self.files[i] for i in at),
            stamps=tuple(self.stamps[i] for i in at),
            labels=self.labels[index],
        )

    def fingerprint(self, *more: object) -> str:
        """A checksum of names, sizes and modification times; it differs when any image changed."""
        digest = hashlib.sha256(repr(more).encode())
        for file, stamp in zip(self.files, self.stamps, strict=True):
            digest.update(f"{file}\0{stamp[0]}\0{stamp[1]}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def checksum(entries: Iterable[object]) -> str:
    """A short checksum of what describes files, in any order.

    >>> checksum(["a", "b"]) == checksum(["b", "a"]) != checksum(["a"])
    True
    """
    text = "\n".join(sorted(repr(entry) for entry in entries))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parts_of(root: Path) -> dict[str, Path]:
    """The folders of ``train``, ``val`` and ``test`` that are there.

    Raises:
        SlimError: Validation images stand under two names.
    """
    named = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
    found = {part: [root / name for name in names if (root / name).is_dir()] for part, names in named.items()}
    if len(found["val"]) > 1:
        raise SlimError(
            f"a folder has one part for validation. Got {', '.join(path.name for path in found['val'])} "
            f"(data.dir={root}). Keep one."
        )
    return {part: folders[0] for part, folders in found.items() if folders}


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the subfolders of ``root`` that are not hidden, sorted.

    Raises:
        SlimError: there is no such folder, or it has fewer than two subfolders.
    """
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SlimError(
            f"data.dir must be a folder that can be read. Got data.dir={root} ({error.strerror}). "
            "Set data.dir to a folder with one subfolder of images per class."
        ) from error
    if not names:
        raise SlimError(
            f"a folder of images needs one subfolder per class. Got no subfolder (data.dir={root}). "
            "Put the images into <data.dir>/train/<class>/ and <data.dir>/test/<class>/."
        )
    if len(names) == 1:
        raise SlimError(
            f"a classifier needs at least two classes. Got one, {names[0]!r} (data.dir={root}). "
            "Add a subfolder for every other class."
        )
    return tuple(names)


def listing(root: Path, classes: Sequence[str]) -> Listing:
    """All images below ``root/<class>``.

    Raises:
        SlimError: a class without images, or a folder that went away meanwhile.
    """
    entries: list[tuple[str, int, int]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(entries)
        try:
            _walk(root, name, entries)
        except OSError as error:
            raise SlimError(
                f"the images must stay where they are. Got {error.strerror} ({error.filename}). Set data.dir."
            ) from error
        if len(entries) == before:
            raise SlimError(
                f"every class needs images. Got none in {root / name}. "
                f"Add images ({', '.join(suffix[1:] for suffix in SUFFIXES)}) or remove the folder."
            )
        labels += [label] * (len(entries) - before)
    return Listing(
        root,
        tuple(classes),
        tuple(file for file, _, _ in entries),
        tuple((size, changed) for _, size, changed in entries),
        torch.tensor(labels, dtype=torch.int64),
    )


def _walk(root: Path, folder: str, entries: list[tuple[str, int, int]]) -> None:
    with os.scandir(root / folder) as children:
        inside = sorted((entry for entry in children if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in inside:
        if entry.is_dir():
            _walk(root, f"{folder}/{entry.name}", entries)
        elif entry.name.lower().endswith(SUFFIXES):
            found = entry.stat()
            if stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                entries.append((f"{folder}/{entry.name}", found.st_size, found.st_mtime_ns))
