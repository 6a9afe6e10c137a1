"""Finished jobs, one JSON file: a second run skips what is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slim.files import write_atomic

RESULTS = Path(__file__).parent / "results.json"


def read(path: Path = RESULTS) -> dict[str, Any]:
    """All finished jobs by name."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def run(name: str, job: Callable[[], dict[str, Any]], path: Path = RESULTS) -> None:
    """Run a job and store what it returns, unless it is stored."""
    if name in read(path):
        return
    wall, cpu = time.time(), time.process_time()
    result = job() | {
        "seconds": round(time.time() - wall),
        "cpu_seconds": round(time.process_time() - cpu),
        "torch": torch.__version__,
    }
    write(name, result, path)
    shown = {k: round(v, 2) for k, v in result.items() if isinstance(v, int | float)}
    print(name, shown, flush=True)


def write(name: str, result: dict[str, Any], path: Path = RESULTS) -> None:
    """Store a result, in the place of an older one."""
    everything = read(path) | {name: result}
    write_atomic(path, json.dumps(dict(sorted(everything.items())), indent=1).encode())
