"""Peak memory: sparse training against plain training, and the prune phase against dense plus thin."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import torch
from torch import nn

import slim
from experiments.bench.row import Row
from experiments.bench.steps import BATCH, Step, images, network
from experiments.bench.thin import _spread
from experiments.surgery.memory import Peak
from slim.sparsity import LAWS, build


def run(quick: bool) -> list[Row]:
    """Sparse training at most 2 % above plain training (resident memory of a process of its own), per law."""
    repetitions, batch = (1, 16) if quick else (3, BATCH)
    names = ["none", *(LAWS if not quick else ["l1"])]
    # What is freed goes back to the system at once: the peak is what lives, not how the allocator's heap is torn.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    peaks: dict[str, list[float]] = {name: [] for name in [*names, "surgery"]}
    for _ in range(repetitions):
        for name, measured in peaks.items():
            command = [sys.executable, "-m", "experiments.bench.memory", name, str(batch)]
            told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            measured.append(float(told))
    plain = statistics.median(peaks["none"])
    rows = [
        Row(
            "memory",
            f"{name} over plain training, vgg-16, batch {batch} ({plain:.0f} MiB)",
            100 * (statistics.median(peaks[name]) / plain - 1),
            "%",
            ("<=", 2.0),
            {"mebibytes": peaks[name], "plain": peaks["none"]},
        )
        for name in names[1:]
    ]
    what = "trace to rebuild of vgg-19 (process of its own), peak over dense and thin together"
    surgery = Row("memory", what, statistics.median(peaks["surgery"]), "%", ("<=", 2.0), {"percent": peaks["surgery"]})
    return [*rows, surgery]


def _surgery() -> float:
    """Percent by which trace, ranking, plan and rebuild exceed the dense network (there before) and the thin one."""
    model = network("vgg", depth=19)
    _spread(model)
    x = torch.zeros(1, 3, 32, 32)
    slim.prune(network("vgg", widths=[8, "M", 8]), x, ratio=0.5)  # imports, and what is made once
    with Peak() as peak:
        result = slim.prune(model, x, ratio=0.5)
    thin, dense = _mebibytes(result.model), _mebibytes(model)
    extra = peak.mebibytes if peak.mebibytes is not None else float("nan")
    return 100 * ((dense + extra) / (dense + thin) - 1)


def _mebibytes(model: nn.Module) -> float:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values()) / 2**20


def _train(law: str, batch: int) -> float:
    """Peak resident MiB of this process after a few steps with the law."""
    import resource

    model = network("vgg", depth=16)
    step = Step(model)
    graph = slim.trace(model, torch.zeros(1, 3, 32, 32))
    if law != "none":
        penalty = build(law, **({"ratio": 0.5} if law == "target" else {"lam": 1e-4}))
        penalty.attach(model, graph, 6)
        step.before, step.after = penalty.before_step, penalty.after_step
    x, y = images(batch)
    for _ in range(6):
        step(x, y)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(_surgery() if sys.argv[1] == "surgery" else _train(sys.argv[1], int(sys.argv[2])))
