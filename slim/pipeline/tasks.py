"""What a network can be asked besides training: its accuracy on a data set, and how much each layer can lose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import slim
from slim.channels import plan_of
from slim.errors import SlimError
from slim.pipeline import cut, judge
from slim.pipeline.source import load_network
from slim.pipeline.workspace import Workspace

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def perform(work: Workspace) -> int:
    """Run the task of the settings and print what it found; nothing is written. Returns the exit code.

    Raises:
        SlimError: No checkpoint is given, or it does not fit.
    """
    settings = work.settings
    if settings.checkpoint is None:
        raise SlimError(
            f"task={settings.task} needs a network. Got checkpoint=null. Set checkpoint=<file or run directory>."
        )
    found = evaluate(work) if settings.task == "evaluate" else sensitivity(work)
    print(json.dumps(found, indent=2))
    return 0


def evaluate(work: Workspace) -> dict[str, object]:
    """Test accuracy and size of the network in ``checkpoint`` on the configured data.

    Returns:
        checkpoint, data, accuracy in [0, 1], channels, params, macs, input_shape, plan (hash or null).
    """
    path = Path(str(work.settings.checkpoint))
    network = work.start or load_network(work, path)
    accuracy = judge.accuracies({"": network}, work.data.test_dataloader(), work.hardware.device)[""]
    plan = plan_of(network)
    return {
        "checkpoint": str(path),
        "data": work.data.name,
        **cut.row(work, network, accuracy=accuracy),
        "input_shape": work.input_shape(),
        "plan": None if plan is None else plan.hash,
    }


def sensitivity(work: Workspace) -> dict[str, object]:
    """Validation accuracy when one layer at a time loses a share of its channels, without any training after it.

    Returns:
        accuracy of the whole network, and {layer: {ratio: accuracy}}; a layer that cannot lose channels is left out.
    """
    network = load_network(work, Path(str(work.settings.checkpoint)))
    graph = work.trace(network)
    scores = slim.score(graph, work.settings.criterion["name"])
    layers: dict[str, dict[str, float]] = {}
    device = work.hardware.device
    for space in graph.spaces:
        inside = space.groups[graph.prunable[space.groups] & scores.covered[space.groups]]
        order = inside[scores.values[inside].argsort(kind="stable")]
        masked = {}
        for ratio in RATIOS:
            removed = np.zeros(len(graph), dtype=bool)
            removed[order[: min(int(ratio * len(space.groups)), len(space.groups) - 1)]] = True
            try:
                masked[str(ratio)] = slim.mask(network, graph.plan(removed))
            except SlimError:
                continue  # a share that the layer's structure does not allow
        if masked:
            layers[space.name] = judge.accuracies(masked, work.validation(), device)
    whole = judge.accuracies({"": network}, work.validation(), device)[""]
    return {"accuracy": whole, "layers": layers}
