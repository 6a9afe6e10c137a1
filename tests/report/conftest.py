"""A record to report on."""

from __future__ import annotations

import random
from typing import Any

import pytest


@pytest.fixture
def make_record() -> Any:
    """A record as a run leaves it, of any number of layers."""

    def make(layers: int = 6, seed: int = 0) -> dict[str, Any]:
        draw = random.Random(seed)
        gammas: dict[str, list[float]] = {}
        for index in range(layers):
            width = 8 * 2 ** (index * 4 // layers)
            gammas[f"layer{index}.bn"] = [draw.uniform(0.2, 1.0) if draw.random() < 0.4 else 0.0 for _ in range(width)]
        removed = {name: [value < 0.1 for value in values] for name, values in gammas.items()}
        widths = {name[:-3]: [len(gone), max(1, len(gone) - sum(gone))] for name, gone in removed.items()}
        dense = {"channels": 384, "params": 1000, "macs": 5000, "latency_ms_b1": 2.0, "latency_ms_b64": 30.0}
        thin = {"channels": 150, "params": 300, "macs": 1500, "latency_ms_b1": 1.8, "latency_ms_b64": 12.0}
        return {
            "experiment": "toy|net",
            "status": "finished",
            "data": "digits",
            "seed": 0,
            "input_shape": "1x3x8x8",
            "phases": {"sparse": {"epochs": 3, "seconds": 61.0, "val": 0.9, "best_val": 0.91, "metric": 0.89}},
            "rows": {
                "dense": {**dense, "metric": 0.9},
                "sparse": {**dense, "metric": 0.89},
                "rebuilt": {**thin, "metric": 0.4},
                "finetuned": {**thin, "metric": 0.895},
            },
            "requested": {"ratio": 0.6},
            "achieved": {"ratio": 0.61, "macs": 0.3},
            "widths": widths,
            "gammas": gammas,
            "removed": removed,
            "cut": 0.0,
            "history": {"sparse": {"train_loss": [2.0, 1.0, 0.5], "val_accuracy": [0.3, 0.8, 0.9]}},
            "notes": ["a note"],
            "latency": {"1": "launch-bound"},
            "environment": {"processor": "X", "threads": 2, "versions": {"torch": "2.6"}},
            "paths": {"artifact": "out/model.safetensors", "report": "out/report.md", "tensorboard": "out dir"},
        }

    return make
