"""One network, both tools, in a process of its own: `python -m experiments.surgery.one resnet50 3 224` prints JSON."""

from __future__ import annotations

import copy
import gc
import json
import statistics
import sys
import time
import warnings
from typing import Any

import torch
from torch import nn

import slim
from experiments.surgery.contenders import CONTENDERS, dense_network, with_slim
from experiments.surgery.memory import Peak

ONCE_ABOVE = 20.0  # seconds; what takes longer is not repeated


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def example_of(name: str, size: int) -> torch.Tensor:
    """One image of zeros, of the shape that the coverage's catalog finds for its networks."""
    if "/" not in name:
        return torch.zeros(1, 3, size, size)
    from experiments.coverage.catalog import build

    return torch.zeros_like(build(name)[1][:1])


def measure(name: str, repeats: int, size: int) -> dict[str, Any]:
    """Median seconds of each tool over alternating repetitions, peak memory of the first, and what came out.

    Networks without BatchNorm are ranked by weight magnitude, once: they show who fails, not who is fast.
    """
    dense = dense_network(name)
    criterion = "gamma"
    if not any(isinstance(module, nn.BatchNorm2d) for module in dense.modules()):
        criterion, repeats = "l1", 1
    example = example_of(name, size)
    # Lazy imports belong to neither tool's time.
    small = dense_network("resnet18")
    for contender in CONTENDERS.values():
        contender(copy.deepcopy(small), example, "gamma")
    gc.collect()

    with Peak() as tracing:
        slim.trace(dense, example)
    row: dict[str, Any] = {"model": name, "parameters": count(dense), "input": "x".join(map(str, example.shape))}
    row |= {"criterion": criterion, "trace MiB": tracing.mebibytes}
    tools: dict[str, Any] = {tool: {"runs": []} for tool in CONTENDERS}
    for repeat in range(repeats):
        for tool, contender in CONTENDERS.items():
            if "failed" in tools[tool] or any(run["total"] > ONCE_ABOVE for run in tools[tool]["runs"]):
                continue
            # Ours returns a new network and needs no copy; the copy for the other is not on its clock.
            model = dense if contender is with_slim else copy.deepcopy(dense)
            gc.collect()
            try:
                begun = time.process_time()
                with Peak() as peak:
                    thin, steps = contender(model, example, criterion)
                # On a busy machine the processor's seconds say more than the wall's.
                tools[tool]["runs"].append(steps | {"cpu": time.process_time() - begun})
                if repeat == 0:
                    tools[tool]["peak MiB"] = peak.mebibytes
                    tools[tool]["parameters kept"] = count(thin) / count(dense)
                    with torch.no_grad():
                        thin(example)
            except Exception as error:
                tools[tool]["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            model = thin = None
    for outcome in tools.values():
        runs = outcome.pop("runs")
        if runs and "failed" not in outcome:
            outcome["seconds"] = {step: statistics.median(run[step] for run in runs) for step in runs[0]}
    return row | tools


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
