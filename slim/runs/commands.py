"""What a network can be asked besides training: its accuracy on a data set, and how much each layer can lose."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch

from slim import sensitivity
from slim.runs.signals import Interrupted
from slim.channels import plan_of
from slim.errors import SlimError
from slim.runs import cut, judge
from slim.runs.workspace import Workspace, make


def perform(work: Workspace, directory: Path) -> int:
    """Run the task of the settings and print what it found. Returns the exit code.

    Args:
        work: Built and checked.
        directory: A run directory that does not exist yet; what belongs to no run goes there.

    Raises:
        SlimError: A checkpoint is needed and not given, or it does not fit.
    """
    found = evaluate(work) if work.settings.task == "evaluate" else analyze(work, directory)
    print(json.dumps(found, indent=2))
    return 0


def evaluate(work: Workspace) -> dict[str, object]:
    """Test accuracy and size of the network in ``checkpoint`` on the configured data.

    Returns:
        checkpoint, data, accuracy in [0, 1], channels, params, macs, input_shape, plan (hash or null).

    Raises:
        SlimError: No checkpoint is given.
    """
    if work.settings.checkpoint is None:
        raise SlimError("task=evaluate needs a network. Got checkpoint=null. Set checkpoint=<file or run directory>.")
    path = Path(work.settings.checkpoint)
    network = work.start or work.dense()
    accuracy = judge.accuracies({"": network}, work.data.test_dataloader(), work.hardware.device)[""]
    plan = plan_of(network)
    return {
        "checkpoint": str(path),
        "data": work.data.name,
        **cut.row(work, network, accuracy=accuracy),
        "input_shape": work.input_shape(),
        "plan": None if plan is None else plan.hash,
    }


def analyze(work: Workspace, directory: Path) -> dict[str, Any]:
    """How much each layer can lose: a table, a figure, and the caps that follow.

    They go beside ``checkpoint``; of a fresh network into ``directory``. A table that is there is gone on with.

    Returns:
        accuracy (of the whole network), images, csv, figure, max_drop, and override: ready for the shell.

    Raises:
        SlimError: The table that is there belongs to another analysis.
        Interrupted: Ctrl-C; what was measured is kept.
    """
    settings, hardware = work.settings, work.hardware
    options = settings.sensitivity
    table = directory / "sensitivity.csv" if options.csv is None else Path(options.csv)
    if options.csv is None and settings.checkpoint is not None:
        path = Path(settings.checkpoint)
        table = (path if path.is_dir() else path.parent) / "sensitivity.csv"
    make(table.parent)
    if settings.trainer.threads is not None:
        torch.set_num_threads(settings.trainer.threads)
    network = (work.start or work.dense()).to(hardware.device)
    if hardware.channels_last:
        network = network.to(memory_format=torch.channels_last)
    graph = work.trace(network)
    try:
        found = sensitivity.measure(
            graph,
            work.validation(),
            scores=cut.score(work, graph),
            shares=options.shares,
            images=options.images,
            bf16=hardware.precision == "bf16-mixed",
            memory_mb=options.memory_mb,
            path=table,
            seed=settings.seed,
        )
    except KeyboardInterrupt:
        raise Interrupted(
            "SIGINT",
            f"Stopped by Ctrl-C. {table} keeps what is measured. The same with sensitivity.csv={table} goes on.",
        ) from None
    figure = table.with_suffix(".png")
    name = settings.model["_target_"].rsplit(".", 1)[-1]
    sensitivity.draw(found, figure, title=f"{name}, {work.data.name}")
    caps = ",".join(
        f"{layer}:{{max_layer_ratio:{rule['max_layer_ratio']:g}}}"
        for layer, rule in found.to_caps(options.max_drop).items()
    )
    return {
        "accuracy": found.whole,
        "images": found.images,
        "csv": str(table),
        "figure": str(figure),
        "max_drop": options.max_drop,
        "override": shlex.quote(f"prune.overrides={{{caps}}}"),
    }
