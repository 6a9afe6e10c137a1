"""What a network can be asked besides training: its metric on a data set, and how much each layer can lose."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim import sensitivity
from slim.channels import plan_of
from slim.errors import SlimError
from slim.files import to_json
from slim.runs import weights
from slim.runs.components import Components
from slim.runs.directory import make
from slim.runs.evaluation import evaluate, validation_batches
from slim.runs.pruning import score
from slim.runs.report import size
from slim.runs.signals import Interrupted


def perform(parts: Components, directory: Path) -> int:
    """Run the task of the configuration and print what it found. Returns the exit code.

    Args:
        parts: Built and checked.
        directory: A run directory that does not exist yet; what belongs to no run goes there.

    Raises:
        SlimError: A checkpoint is needed and not given, or it does not fit.
    """
    found = measure(parts) if parts.config.task == "evaluate" else analyze(parts, directory)
    print(to_json(found))
    return 0


def measure(parts: Components) -> dict[str, object]:
    """Metric on the test data, and size, of the network in ``checkpoint``.

    Returns:
        checkpoint, data, images (of the test data, or null), the metric by its name, channels, params, macs,
        input_shape, plan (hash or null).

    Raises:
        SlimError: No checkpoint is given, or its classes are the data's in another order.
    """
    checkpoint = parts.config.checkpoint
    if checkpoint is None:
        raise SlimError("task=evaluate needs a network. Got checkpoint=null. Set checkpoint=<file or run directory>.")
    module = weights.load(parts, Path(checkpoint))
    weights.normalize_as(parts.data, Path(checkpoint))
    network = parts.network(module)
    value = evaluate(parts, module, "test")
    if line := weights.other_classes(parts.data, Path(checkpoint)):  # some data know their names once they are read
        print(line, file=sys.stderr, flush=True)
    plan, counts = plan_of(network), getattr(parts.data, "counts", None)
    return {
        "checkpoint": checkpoint,
        "data": parts.data_name,
        "images": counts.get("test") if isinstance(counts, Mapping) else None,
        parts.config.metric.name: value,
        **size(parts.trace(network)),
        "input_shape": parts.input_shape,
        "plan": None if plan is None else plan.hash,
    }


def analyze(parts: Components, directory: Path) -> dict[str, Any]:
    """How much each layer can lose: a table, a figure, and the caps that follow. For classifiers.

    They go beside ``checkpoint``; of a fresh network into ``directory``. A table that is there is gone on with.

    Returns:
        accuracy (of the whole network), images, csv, figure, max_drop, and override: ready for the shell.

    Raises:
        SlimError: The table that is there belongs to another analysis, or the network is no classifier.
        Interrupted: Ctrl-C; what was measured is kept.
    """
    config, hardware = parts.config, parts.hardware
    if config.metric.name != "accuracy":
        raise SlimError(
            f"task=sensitivity measures accuracy, of classifiers. Got metric.name={config.metric.name}. "
            "Use slim.sensitivity in Python, or set metric.name=accuracy."
        )
    options = config.sensitivity
    table = _table(parts, directory)
    network = _network_on_device(parts)
    make(table.parent)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    graph = parts.trace(network)
    try:
        found = sensitivity.measure(
            graph,
            validation_batches(parts.data),
            scores=score(parts, graph),
            shares=options.shares,
            images=options.images,
            bf16=hardware.precision == "bf16-mixed",
            memory_mb=options.memory_mb,
            path=table,
            seed=config.seed,
        )
    except KeyboardInterrupt:
        raise Interrupted(
            "SIGINT",
            f"Stopped by Ctrl-C. {table} keeps what is measured. The same with sensitivity.csv={table} goes on.",
        ) from None
    return _summary(parts, found, table)


def _network_on_device(parts: Components) -> nn.Module:
    """The network of ``checkpoint``, or a fresh one, on the run's device and in its memory format."""
    config, hardware = parts.config, parts.hardware
    module = parts.module() if config.checkpoint is None else weights.load(parts, Path(config.checkpoint))
    if config.checkpoint is not None:
        weights.normalize_as(parts.data, Path(config.checkpoint))
    network = parts.network(module).to(hardware.device)
    return network.to(memory_format=torch.channels_last) if hardware.channels_last else network


def _summary(parts: Components, found: sensitivity.Sensitivity, table: Path) -> dict[str, Any]:
    """Draw the figure beside the table; what :func:`analyze` returns."""
    config, figure = parts.config, table.with_suffix(".png")
    name = str(config.model["_target_"]).rsplit(".", 1)[-1]
    title = f"{name}, {parts.data_name}"
    sensitivity.draw(found, figure, title=title)
    if config.figures:
        from slim.report.tensorboard import log_picture

        log_picture(table.parent / "sensitivity", "sensitivity/heat_map", sensitivity.figure(found, title))
    caps = found.to_caps(config.sensitivity.max_drop)
    text = ",".join(f"{_key(layer)}:{{max_layer_ratio:{rule['max_layer_ratio']:g}}}" for layer, rule in caps.items())
    return {
        "accuracy": found.whole,
        "images": found.images,
        "csv": str(table),
        "figure": str(figure),
        "max_drop": config.sensitivity.max_drop,
        "override": shlex.quote(f"prune.overrides={{{text}}}"),
    }


def _key(layer: str) -> str:
    r"""A layer as a pattern that Hydra reads as text: ``0.10`` would be a number, and quotes are none of its keys.

    >>> print(_key("features.0"), _key("0.10"))
    features.0 \[0\].10
    """
    return f"\\[{layer[0]}\\]{layer[1:]}" if layer[:1].isdecimal() else layer


def _table(parts: Components, directory: Path) -> Path:
    """Where the table of the analysis goes: as configured, beside the checkpoint, or into ``directory``."""
    config = parts.config
    if config.sensitivity.csv is not None:
        return Path(config.sensitivity.csv)
    if config.checkpoint is None:
        return directory / "sensitivity.csv"
    path = Path(config.checkpoint)
    return (path if path.is_dir() else path.parent) / "sensitivity.csv"
