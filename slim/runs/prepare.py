"""From a composed configuration to the components of a run, built and checked before anything is written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

import slim
from slim import criteria, models, sparsity
from slim.channels import ChannelGraph
from slim.data import ImageData, TaskData
from slim.errors import SlimError
from slim.lightning import capture_example
from slim.runs import builders
from slim.runs.components import Components
from slim.runs.config import read
from slim.runs.construct import check, target
from slim.runs.failures import out_of_memory, quiet
from slim.runs.hardware import choose
from slim.runs.loggers import check_loggers
from slim.runs.pruning import rehearse
from slim.runs.schema import Config
from slim.runs.trainer import check_options as check_trainer
from slim.tasks import Classification, Segmentation


def prepare(config: Mapping[str, Any], *, begun: bool = False) -> Components:
    """Build and check everything that a run needs.

    Args:
        config: Composed, as plain nested data.
        begun: The run goes on: what cannot have changed since is not checked again.

    Raises:
        SlimError: One line per kind of mistake, before anything touches the disk.
    """
    settings = read(config)
    hardware = choose(settings.trainer)
    _check_options(settings)
    data = _data(settings)
    _check_test_data(settings, data)
    found = Components(settings, hardware, data, _example(settings, data))
    module = found.module()
    network = found.network(module)
    _check_network(settings, module, network, data)
    if settings.task == "train":
        graph = found.trace(network)
        _check_scales(settings, graph)
        _check_batches(settings, data)
        if "export" in settings.phases:
            from slim.runs import exporting

            exporting.check(found, module)
        if "prune" in settings.phases and not begun:
            rehearse(found, module, graph)
        if "sparse" in settings.phases and not begun:
            _penalty(found.penalty).attach(network, graph, 100)  # where a law that selects does so for the first time
    return found


def _data(config: Config) -> Any:
    data = builders.data_module(config)
    try:
        data.prepare_data()
        data.setup("fit")
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        size = config.data.get("image_size")
        raise SlimError(
            f"Images must fit in memory. Got data.image_size={size} (out of memory). Lower data.image_size."
        ) from error
    return data


def _example(config: Config, data: Any) -> Any:
    """Example input: one image of zeros where data and module are slim's own, else recorded from a batch."""
    size = getattr(data, "image_size", None)
    channels = getattr(data, "in_channels", None)
    ours = str(config.module.get("_target_")).startswith("slim.tasks.")
    if ours and isinstance(size, int) and isinstance(channels, int):
        return torch.zeros(1, channels, size, size)
    with quiet():
        return capture_example(builders.lightning_module(config, data), data, network=config.network)


# Checks


def _check_options(config: Config) -> None:
    """Check the options of parts that are built later."""
    for key in ("criterion", "penalty"):
        if not isinstance(getattr(config, key).get("name"), str):
            raise SlimError(f"{key}.name must be text. Got {getattr(config, key).get('name')!r}. Set {key}=<name>.")
    check_loggers(config.logger)
    check_trainer(config.trainer.options)
    _check_metric(config)
    if "sparse" in config.phases:
        select = config.penalty.get("select") or {}
        # What it is on this machine is measured on the network, which comes later.
        any_number = {"select": {**select, "round_to": 1}} if select.get("round_to") == "auto" else {}
        _penalty({**config.penalty, **any_number})
    if "prune" in config.phases:
        criterion = criteria.find(config.criterion["name"])
        known = {"name", "normalize", "reduce", *list(inspect.signature(criterion.rank).parameters)[1:]}
        for option in config.criterion:
            if option not in known:
                raise SlimError(
                    f"criterion.{option} must be an option of {criterion.name}. "
                    f"Got {option}={config.criterion[option]}. {slim.errors.nearest(option, known)}"
                )
    # On a parameter of one number: the point is that the options fit, before data and model take their time.
    lr = config.optimizer.get("lr", 0.1)
    if lr is None:
        raise SlimError("optimizer.lr must be a number. Got optimizer.lr=null. Set optimizer.lr=0.1.")
    made = builders.optimizer(config, [nn.Parameter(torch.zeros(1))], lr)
    builders.check_optimization(made, builders.scheduler(config, made, 100)["scheduler"], 100)
    builders.check_warmup(config, lr)
    for kind in config.phases:
        if kind in ("baseline", "sparse", "finetune"):
            builders.check_training(config, kind)
    for key, options in (("data", config.data), ("module", config.module)):
        check(target(options.get("_target_"), key), {k: v for k, v in options.items() if k != "_target_"}, key)


def _penalty(options: Mapping[str, Any]) -> sparsity.Penalty:
    return sparsity.build(options["name"], **{name: value for name, value in options.items() if name != "name"})


def _check_metric(config: Config) -> None:
    """What slim's own tasks log is known; a module from outside is asked, see :func:`slim.runs.phases.check_metric`."""
    task = target(config.module.get("_target_"), "module")
    known = getattr(task, "METRICS", ()) if str(task.__module__).startswith("slim.tasks.") else ()
    if known and config.metric.name not in known:
        raise SlimError(
            f"metric.name must be a metric that the module logs. Got metric.name={config.metric.name}; "
            f"{task.__name__} logs {', '.join(known)}. Set metric.name={known[-1]}."
        )
    better = "min" if config.metric.name == "loss" else "max"
    if known and config.metric.mode != better:
        raise SlimError(
            f"metric.mode must say whether more or less is better. Got metric.name={config.metric.name} with "
            f"metric.mode={config.metric.mode}. Set metric.mode={better} metric.percent={str(better == 'max').lower()}."
        )
    split, _, monitored = str(config.scheduler.get("monitor")).partition("/")
    if known and split == "val" and monitored not in known:
        raise SlimError(
            f"scheduler.monitor must be a metric that the module logs. Got scheduler.monitor=val/{monitored}; "
            f"{task.__name__} logs {', '.join(f'val/{name}' for name in known)}. Set one of them."
        )


def _check_test_data(config: Config, data: Any) -> None:
    if config.task != "sensitivity" and not is_overridden("test_dataloader", data, pl.LightningDataModule):
        raise SlimError(
            "Data must have a test_dataloader: networks are measured with it, once, at the end. "
            f"Got data._target_={config.data.get('_target_')} without one. Add it; it may be that of validation."
        )


def _check_network(config: Config, module: Any, network: nn.Module, data: Any) -> None:
    if isinstance(module, Classification) and hasattr(data, "image_size"):
        models.check(network, data.num_classes, data.in_channels, data.image_size)
    if isinstance(module, Segmentation) and hasattr(data, "image_size"):
        models.check_pixels(network, data.num_classes, data.in_channels, data.image_size)


def _check_scales(config: Config, graph: ChannelGraph) -> None:
    if any(scale.weight is not None for scale in graph.scales):
        return
    by_gamma = "prune" in config.phases and config.criterion["name"] == "gamma"
    if "sparse" in config.phases or by_gamma:
        raise SlimError(
            "Sparse training needs normalization layers with a scale. "
            f"Got none in model={config.model.get('_target_')}. "
            "Choose a model with BatchNorm, or phases=[prune,finetune] with criterion=l1."
        )


def _check_batches(config: Config, data: Any) -> None:
    if isinstance(data, ImageData | TaskData):
        _check_shares(data, config.trainer.processes)
    loader = data.train_dataloader()
    try:
        count = len(loader)
    except TypeError:
        return  # a stream says nothing of its length
    if count == 0:
        size = config.data.get("batch_size")
        raise SlimError(
            f"The batch size must not exceed the training images. Got batch_size={size}. Lower data.batch_size."
        )
    _check_lengths(config, count)


def _check_lengths(config: Config, batches: int) -> None:
    """Check that no phase of so many batches an epoch is without a step, or outlasts its learning rates."""
    trainer, limit = config.trainer, config.trainer.limit_train_batches
    batches = max(1, batches // trainer.processes)  # each has its share, where the loader does not count so already
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    for kind in ("baseline", "sparse", "finetune"):
        if kind in config.phases:
            steps = math.ceil(batches / trainer.accumulate) * config.training(kind).epochs
            most = trainer.options.get("max_steps", -1)
            steps = min(steps, most) if most >= 0 else steps
            if not steps:
                raise SlimError(
                    f"A phase must have an optimizer step. Got none of {kind} by trainer.options={trainer.options}. "
                    "Raise limit_train_batches, or max_steps, in it."
                )
            builders.check_length(config, kind, steps)


def _check_shares(data: ImageData | TaskData, processes: int) -> None:
    """Check that every process gets a batch, and an image of validation, where there are any, and test."""
    images, held_out = data.counts["train"], data.counts["val"]
    if data.batch_size * processes > images:
        raise SlimError(
            f"Every process must have a batch of training images. Got batch_size={data.batch_size} x {processes} "
            f"processes for {images} images. Set data.batch_size to at most {images // processes}."
        )
    for part, some, key in (("validation", held_out, "val_fraction"), ("test", data.limit_test, "limit_test")):
        if some and some < processes:
            raise SlimError(
                f"Every process must have an image of {part}. Got {some} for {processes} processes. Raise data.{key}."
            )
