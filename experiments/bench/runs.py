"""Whole runs of ``train.py``, as a user starts them, for the benchmarks of slimming while training."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim.files import write_json
from slim.report.environment import revision

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "outputs" / "bench"
NETWORKS = {
    "vgg-16": ["model=vgg", "model.depth=16", "model.widths=null"],
    # Layers of 16 to 64 channels: an odd number of them runs no faster than the next multiple of 8.
    "resnet-56": ["model=resnet", "model.depth=56", "prune.round_to=8"],
}
MACS = 0.3
"""Of the dense network, what the budget leaves."""


@dataclass(frozen=True)
class Size:
    """How long a run is: training and test images, and epochs of sparse training and fine-tuning.

    The dense baseline trains for as many epochs as both together.
    """

    images: int
    test: int
    sparse: int
    finetune: int

    @property
    def epochs(self) -> int:
        return self.sparse + self.finetune


def trained(network: str, kind: str, size: Size, data: Path | None, *, seed: int = 0, again: bool = False) -> Path:
    """The directory of the finished run; one that was begun goes on, one that is finished is taken as it is.

    Args:
        network: A key of :data:`NETWORKS`.
        kind: ``dense``, ``early`` (rebuilt after every epoch of sparse training) or ``late`` (one cut at its end).
        size: Of the run.
        data: A folder of images; the digits inside scikit-learn without one.
        seed: Of weights, order and augmentation.
        again: Throw away what an earlier call left.
    """
    source = ["data=digits"] if data is None else ["data=image_folder", f"data.dir={data.resolve()}"]
    line = [
        *(*source, *NETWORKS[network], f"seed={seed}", "name=bench", "trainer.progress=none", "latency_seconds=0.05"),
        *("data.batch_size=64", "data.val_fraction=0", f"data.limit_train={size.images}"),
        *(f"data.limit_test={size.test}", "scheduler=cosine", "optimizer.lr=0.05"),
        *("baseline.lr=0.05", "sparse.lr=0.05", "finetune.lr=0.02"),
    ]
    if kind == "dense":
        line += ["phases=[baseline]", f"baseline.epochs={size.epochs}"]
    else:
        line += ["penalty=target", "penalty.start=0.1", "prune.ratio=null", f"prune.macs={MACS}", "sparse.shrink=null"]
        line += [f"sparse.epochs={size.sparse}", f"finetune.epochs={size.finetune}"]
        line += [f"sparse.slim_every={int(kind == 'early')}"]
    directory = PLACE / f"{network}-{kind}-{size.images}x{size.epochs}-{source[0].partition('=')[2]}-s{seed}"
    made = {"line": line, "revision": str(revision()).rstrip("+")}
    begun = directory.with_suffix(".json")
    if again or not begun.is_file() or json.loads(begun.read_text()) != made:
        shutil.rmtree(directory, ignore_errors=True)
        PLACE.mkdir(parents=True, exist_ok=True)
        write_json(begun, made)
    if not (directory / "report.json").is_file():
        resumed = (directory / "state.json").is_file()
        whole = [f"resume={directory}"] if resumed else [*line, f"hydra.run.dir={directory}"]
        subprocess.run([sys.executable, "train.py", *whole], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return directory


def record(directory: Path) -> dict[str, Any]:
    """The run's report as plain data."""
    return dict(json.loads((directory / "report.json").read_text()))
