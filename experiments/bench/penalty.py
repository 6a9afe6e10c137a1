"""Cost of every sparsity law: its own time, per optimizer step, against the step it rides on."""

from __future__ import annotations

import time

import torch

import slim
from experiments.bench.row import Row
from experiments.bench.steps import BATCH, NETWORKS, Step, chosen, images, network
from experiments.bench.turns import take_turns
from slim.sparsity import LAWS, build


def run(quick: bool) -> list[Row]:
    """One row per network and law; at most 1 % is the aim.

    A whole step varies by more than 1 % from one to the next, so what the law adds is timed by itself, over a phase of
    its own (rankings included), and divided by the time of the step without it.
    """
    machine = chosen()
    rows = []
    for family, options in NETWORKS.items():
        if quick and family != "resnet":
            continue
        x, y = images(16 if quick else BATCH)
        step = Step(
            network(family, **options), machine.precision == "bf16-mixed", machine.channels_last, machine.device.type
        )
        plain = take_turns({"step": lambda step=step, x=x, y=y: step(x, y)}, 3 if quick else 9, warmup=1).median("step")
        graph = slim.trace(step.model, torch.zeros(1, 3, 32, 32))
        for law in LAWS:
            seconds = _own_seconds(law, step, graph, 60 if quick else 400)
            rows.append(
                Row(
                    "penalty",
                    f"{law} on {family}-{options['depth']}, batch {len(x)}",
                    100 * seconds / plain,
                    "%",
                    ("<=", 1.0),
                    {"law_ms": 1e3 * seconds, "step_ms": 1e3 * plain},
                )
            )
    return rows


def _own_seconds(law: str, step: Step, graph: slim.ChannelGraph, steps: int) -> float:
    options = {"ratio": 0.5} if law == "target" else {"lam": 1e-4}
    penalty = build(law, **options)
    kept = {name: value.clone() for name, value in step.model.state_dict().items()}
    penalty.attach(step.model, graph, steps)
    start = time.perf_counter()
    for _ in range(steps):
        penalty.before_step(1e-3)
        penalty.after_step(1e-3)
    if step.device != "cpu":
        torch.cuda.synchronize()
    spent = (time.perf_counter() - start) / steps
    step.model.load_state_dict(kept)
    return spent
