"""Finished jobs of an experiment in one JSON file that travels with the code: a second run skips what is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from slim.files import write_atomic
from slim.report import environment


class Store:
    """``results.json`` of an experiment: job name -> its figures.

    Args:
        path: The file; it comes into being with the first result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """All finished jobs by name."""
        return dict(json.loads(self._path.read_text(encoding="utf-8"))) if self._path.exists() else {}

    def write(self, found: Mapping[str, Any]) -> None:
        """Store results, in the place of older ones of the same names."""
        everything = self.read() | dict(found)
        write_atomic(self._path, json.dumps(dict(sorted(everything.items())), indent=1))

    def run(self, name: str, job: Callable[[], dict[str, Any]]) -> None:
        """Run a job and store what it returns with its cost and the machine's name, unless it is stored."""
        if name in self.read():
            return
        wall, cpu = time.time(), time.process_time()
        result = job() | {
            "seconds": round(time.time() - wall),
            "cpu_seconds": round(time.process_time() - cpu),
            "torch": torch.__version__,
            "machine": environment.processor(),
        }
        self.write({name: result})
        shown = {key: round(value, 2) for key, value in result.items() if isinstance(value, int | float)}
        print(name, shown, flush=True)
