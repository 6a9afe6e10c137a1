"""A whole run in seconds, for tests: its command line, and a way to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import train

TINY = [
    "data.image_size=8",
    "data.limit_train=64",
    "data.limit_test=64",
    "data.batch_size=32",
    "model.widths=[8,M,16]",
    "trainer.accelerator=cpu",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "sparse.epochs=2",
    "sparse.shrink=0.3",
    "finetune.epochs=2",
    "baseline.epochs=2",
    "prune.ratio=0.5",
    "recovery.recalibrate_batches=2",
    "latency_seconds=0.001",
    "figures=false",
]
FOUR_STEPS = "data.limit_train=128"
"""To an epoch, instead of two: for tests of what happens within one."""


def run(directory: Path, *overrides: str, code: int = 0) -> dict[str, Any]:
    """Run ``TINY`` with ``overrides`` (which win) in ``directory``; returns the report."""
    given = {item.partition("=")[0] for item in overrides}
    if "model" in given:
        given.add("model.widths")
    whole = [] if any(item.startswith("+experiment=") for item in overrides) else ["+experiment=vgg_slim", *TINY]
    # Another experiment brings its own model and budget.
    base = whole or [
        "trainer.accelerator=cpu",
        "latency_seconds=0.001",
        "figures=false",
        "recovery.recalibrate_batches=1",
    ]
    line = [*(item for item in base if item.partition("=")[0] not in given), *overrides]
    assert train.main([*line, f"hydra.run.dir={directory}"]) == code
    path = directory / "report.json"
    return json.loads(path.read_text()) if path.is_file() else {}
