"""Finished jobs, one JSON file: a second run skips what is there."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slim.files import write_atomic

RESULTS = Path(__file__).parent / "results.json"


def read(path: Path = RESULTS) -> dict[str, Any]:
    """All finished jobs by name."""
    return json.loads(path.read_text()) if path.exists() else {}


def run(name: str, job: Callable[[], dict[str, Any]], path: Path = RESULTS) -> dict[str, Any]:
    """Run a job and store what it returns, or return what is stored."""
    if name in read(path):
        return read(path)[name]
    begun = time.time()
    result = job() | {
        "seconds": round(time.time() - begun),
        "torch": torch.__version__,
        "machine": platform.processor(),
    }
    everything = read(path) | {name: result}
    write_atomic(path, json.dumps(dict(sorted(everything.items())), indent=1).encode())
    print(name, result, flush=True)
    return result
